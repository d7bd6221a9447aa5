// SPDX-License-Identifier: GPL-2.0-or-later
#include <cstdio>
#include <nlohmann/json.hpp>

#include "formats/vhd/parent.hh"
#include "formats/vhd/tables.hh"
#include "formats/vhd/vhd.hh"

namespace cowd::vhd {
namespace {

// Four characters, if they are some.
std::string text_of(const std::array<char, 4>& creator) {
  std::string text;
  for (const char c : creator)
    if (c >= ' ' && c <= '~') text += c;
  return text;
}

}  // namespace

Task<nlohmann::json> info(std::shared_ptr<Disk> top) {
  const Footers footers = co_await read_footers(*top);
  const Footer& footer = footers.current;
  nlohmann::json json{{"format", "vhd"},
                      {"virtual-size", footer.size},
                      {"type", name_of(footer.type)},
                      {"uuid", to_string(footer.uuid)},
                      {"creator", text_of(footer.creator)}};
  if (!footers.problem_at_end.empty()) json["damaged-footer"] = footers.problem_at_end;
  if (footer.type == Type::fixed) co_return json;
  const Header header = co_await read_header(*top, footer);
  BlockTables tables(*top, footer, header);
  co_await tables.load();
  json["block-size"] = header.block_bytes;
  json["blocks"] = (footer.size + header.block_bytes - 1) / header.block_bytes;
  json["blocks-allocated"] = tables.allocated();
  if (footer.type == Type::differencing) {
    json["base"] = co_await parent_path(*top, header);
    json["base-uuid"] = to_string(header.parent);
  }
  co_return json;
}

}  // namespace cowd::vhd
