// SPDX-License-Identifier: GPL-2.0-or-later
#include <algorithm>

#include "formats/dscow/operations.hh"

namespace cowd::dscow {
namespace {

bool probe(std::span<const std::byte> head) {
  const auto marked = [head](size_t at) {
    return head.size() >= at + kMagic.size() &&
           std::equal(kMagic.begin(), kMagic.end(), head.begin() + static_cast<ptrdiff_t>(at),
                      [](char a, std::byte b) { return std::byte(a) == b; });
  };
  return marked(0) || marked(kBlock);
}

constexpr FormatDescriptor describe() {
  FormatDescriptor format;
  format.name = "dscow";
  format.description = "copy-on-write store where every block keeps its place";
  format.wants_base = true;
  format.create_options =
      "granule=what is copied at once on a first write, 4K (default) to 1M, a power of two\n"
      "size=size of the disk; default: that of the base\n"
      "uuid=a UUID to know the store by; default: none\n";
  format.probe = probe;
  format.create = create;
  format.open = open;
  format.info = info;
  format.check = check;
  format.store_size = store_size;
  format.begin_commit = begin_commit;
  format.end_commit = end_commit;
  return format;
}

}  // namespace
}  // namespace cowd::dscow

constinit const cowd::FormatDescriptor cowd_format = cowd::dscow::describe();
