// SPDX-License-Identifier: GPL-2.0-or-later
#include <algorithm>
#include <string_view>

#include "formats/vmdk/vmdk.hh"

namespace cowd::vmdk {
namespace {

bool probe(std::span<const std::byte> head) {
  const auto begins = [head](std::string_view with) {
    return head.size() >= with.size() &&
           std::equal(with.begin(), with.end(), head.begin(),
                      [](char a, std::byte b) { return std::byte(a) == b; });
  };
  return begins("KDMV") || begins("COWD") || begins("# Disk DescriptorFile");
}

constexpr FormatDescriptor describe() {
  FormatDescriptor format;
  format.name = "vmdk";
  format.description = "Virtual Machine Disk, of VMware";
  format.create_options =
      "size=size of the disk, a multiple of 64K\n"
      "subformat=monolithicSparse (default), monolithicFlat, twoGbMaxExtentSparse or "
      "twoGbMaxExtentFlat\n";
  format.probe = probe;
  format.create = create;
  format.open = open;
  format.info = info;
  format.check = check;
  format.room = room;
  return format;
}

}  // namespace
}  // namespace cowd::vmdk

constinit const cowd::FormatDescriptor cowd_format = cowd::vmdk::describe();
