// SPDX-License-Identifier: GPL-2.0-or-later
// The text of a VMDK: what kind it is, of which files, on which parent. "Virtual Disk Format
// 5.0" (VMware technical note), "The Descriptor File".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cowd::vmdk {

inline constexpr uint32_t kNoParent = 0xffffffff;

struct ExtentLine {
  std::string access;  // RW, RDONLY, NOACCESS
  uint64_t sectors = 0;
  std::string type;  // FLAT, SPARSE, ZERO, VMFS, VMFSSPARSE, ...
  std::string file;
  uint64_t offset = 0;  // sectors, of FLAT and VMFS
};

struct Descriptor {
  std::string create_type;
  uint32_t cid = 0;
  uint32_t parent_cid = kNoParent;
  std::string parent;  // parentFileNameHint
  std::vector<ExtentLine> extents;
};

// Throws Error(EINVAL) that begins with `name`.
Descriptor parse_descriptor(const std::string& name, std::string_view text);

// Where in the text the digits of CID= are.
struct CidPlace {
  size_t offset = 0;
  size_t digits = 0;
};
std::optional<CidPlace> find_cid(std::string_view text);

// Of a new image; `lines` are those of its extents.
std::string make_descriptor(const std::string& type, const std::string& lines, uint64_t sectors,
                            uint32_t cid);

}  // namespace cowd::vmdk
