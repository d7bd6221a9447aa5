// SPDX-License-Identifier: GPL-2.0-or-later
#include <algorithm>
#include <string_view>

#include "formats/vhd/vhd.hh"

namespace cowd::vhd {
namespace {

// A fixed image has its mark at the end, which is not looked at.
bool probe(std::span<const std::byte> head) {
  constexpr std::string_view magic = "conectix";
  return head.size() >= magic.size() &&
         std::equal(magic.begin(), magic.end(), head.begin(),
                    [](char a, std::byte b) { return std::byte(a) == b; });
}

constexpr FormatDescriptor describe() {
  FormatDescriptor format;
  format.name = "vhd";
  format.description = "Virtual Hard Disk, of Virtual PC, Hyper-V and XenServer";
  format.create_options =
      "block=what a first write takes of the file at once, 64K to 32M; default: 2M\n"
      "parent=image that a differencing one lies on, from the folder of the image on\n"
      "size=size of the disk; that of its parent if it is differencing\n"
      "type=dynamic (default): grows as it is written to; fixed: has its full size at once; "
      "differencing: has what its parent has until it is written to\n";
  format.probe = probe;
  format.create = create;
  format.open = open;
  format.info = info;
  format.check = check;
  format.room = room;
  // The parent keeps its unique id, and that is all its child knows of it.
  format.begin_commit = [](CommitRequest) -> Task<> { co_return; };
  return format;
}

}  // namespace
}  // namespace cowd::vhd

constinit const cowd::FormatDescriptor cowd_format = cowd::vhd::describe();
