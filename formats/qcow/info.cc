// SPDX-License-Identifier: GPL-2.0-or-later
#include <nlohmann/json.hpp>

#include "formats/qcow/header.hh"
#include "formats/qcow/qcow.hh"

namespace cowd::qcow {

Task<nlohmann::json> info(std::shared_ptr<Disk> top) {
  const Header header = co_await read_header(*top);
  nlohmann::json json{{"format", "qcow"},
                      {"virtual-size", header.size},
                      {"cluster-size", header.cluster()},
                      {"table-entries", header.entries()}};
  const BackingName backing = co_await read_backing_name(*top, header);
  if (!backing.file.empty()) json["base"] = json["backing-filename"] = backing.file;
  if (!backing.format.empty()) json["backing-filename-format"] = backing.format;
  co_return json;
}

}  // namespace cowd::qcow
