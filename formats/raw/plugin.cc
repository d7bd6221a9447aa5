// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/raw/raw.hh"

namespace cowd::raw {
namespace {

constexpr FormatDescriptor describe() {
  FormatDescriptor format;
  format.name = "raw";
  format.description = "the disk itself, block for block";
  // Whatever a disk holds, it can be raw.
  format.probe = [](std::span<const std::byte>) { return true; };
  format.create = create;
  format.open = open;
  format.info = info;
  format.check = check;
  format.resize = resize;
  format.store_size = [](uint64_t virtual_bytes, const Options&) { return virtual_bytes; };
  return format;
}

}  // namespace
}  // namespace cowd::raw

constinit const cowd::FormatDescriptor cowd_format = cowd::raw::describe();
