// SPDX-License-Identifier: GPL-2.0-or-later
#include <nlohmann/json.hpp>

#include "formats/dscow/headers.hh"
#include "formats/dscow/operations.hh"

namespace cowd::dscow {

Task<nlohmann::json> info(std::shared_ptr<Disk> top) {
  const Headers headers = co_await Headers::read(*top);
  const Header& header = headers.current();
  nlohmann::json json{{"format", "dscow"},
                      {"version", kVersion},
                      {"virtual-size", header.geometry.size},
                      {"granule", header.geometry.granule},
                      {"store-size-needed", header.geometry.needed()},
                      {"store-size", top->size()},
                      {"data-offset", header.geometry.data_offset},
                      {"mode", name_of(header.mode)},
                      {"clean", header.clean},
                      {"epoch", header.epoch},
                      {"features",
                       {{"compatible", header.compatible},
                        {"read-only", header.read_only},
                        {"incompatible", header.incompatible}}}};
  if (header.store != Uuid{}) json["uuid"] = to_string(header.store);
  if (!header.owner.host.empty())
    json["owner"] = {{"host", header.owner.host}, {"boot", header.owner.boot}};
  if (header.base.size != 0) {
    json["base"] = header.base_locator;
    json["base-size"] = header.base.size;
    if (header.base.uuid != Uuid{}) json["base-uuid"] = to_string(header.base.uuid);
  }
  for (size_t copy = 0; copy < 2; copy++)
    if (!headers.problem(copy).empty())
      json["damaged-header"] = "copy " + std::to_string(copy) + ": " + headers.problem(copy);
  co_return json;
}

}  // namespace cowd::dscow
