// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/vhd/parent.hh"

#include <algorithm>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"

namespace cowd::vhd {
namespace {

constexpr uint32_t kMaxPath = 8192;  // bytes of UTF-16

std::string with_slashes(std::string path) {
  std::ranges::replace(path, '\\', '/');
  while (path.starts_with("./")) path.erase(0, 2);
  return path;
}

}  // namespace

Task<std::string> parent_path(Disk& top, const Header& header) {
  for (const Locator& locator : header.locators) {
    if (locator.platform != kRelativePath || locator.length == 0) continue;
    if (locator.length > kMaxPath || locator.length % 2 != 0)
      throw Error(EINVAL, top.name() + ", a differencing VHD, has a path of its parent of " +
                              std::to_string(locator.length) + " bytes: it is damaged.");
    Buffer bytes(locator.length);
    co_await read_any(top, locator.offset, bytes);
    const auto path = utf8(bytes, false);
    if (path && !path->empty()) co_return with_slashes(*path);
  }
  // An absolute one of another system says nothing here but the file's name.
  std::string path = with_slashes(header.parent_name);
  path = path.substr(path.rfind('/') + 1);
  if (path.empty())
    throw Error(EINVAL, top.name() +
                            " is a differencing VHD and does not name its parent in a way that is "
                            "understood here: it needs a relative path or a name.");
  co_return path;
}

}  // namespace cowd::vhd
