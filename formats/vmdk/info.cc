// SPDX-License-Identifier: GPL-2.0-or-later
#include <cstdio>
#include <nlohmann/json.hpp>

#include "formats/vmdk/vmdk.hh"

namespace cowd::vmdk {
namespace {

std::string hex(uint32_t number) {
  char text[9];
  std::snprintf(text, sizeof text, "%08x", number);
  return text;
}

}  // namespace

Task<nlohmann::json> info(std::shared_ptr<Disk> top) {
  const Top said = co_await read_top(*top);
  uint64_t sectors = said.header.capacity;
  nlohmann::json files = nlohmann::json::array();
  if (!said.sparse) {
    sectors = 0;
    for (const ExtentLine& line : said.descriptor.extents) {
      sectors += line.sectors;
      if (!line.file.empty()) files.push_back(line.file);
    }
  }
  nlohmann::json json{{"format", "vmdk"},
                      {"virtual-size", sectors * kSector},
                      {"type", said.descriptor.create_type},
                      {"cid", hex(said.descriptor.cid)}};
  if (!files.empty()) json["files"] = files;
  if (said.sparse) {
    json["grain"] = said.header.grain * kSector;
    json["unclean"] = said.header.unclean;
  }
  if (said.descriptor.parent_cid != kNoParent) {
    json["base"] = said.descriptor.parent;
    json["base-format"] = "vmdk";
    json["base-cid"] = hex(said.descriptor.parent_cid);
  }
  co_return json;
}

}  // namespace cowd::vmdk
