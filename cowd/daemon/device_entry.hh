// SPDX-License-Identifier: GPL-2.0-or-later
// What cowd notes of an attached device, for itself after a restart:
// <run dir>/devices.d/<name>.json. State that matters is in the images.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <vector>

#include "formats/plugin.hh"

namespace cowd {

struct DeviceEntry {
  std::string name;  // of the dm device
  std::string uuid;  // of the dm device, DMU-...
  std::string key;   // of its table
  std::string spec;  // resolved and canonical: not @NAME
  std::string format;
  Durability durability = Durability::flush;
  bool read_only = false;
  bool queue_if_no_daemon = true;
  unsigned no_daemon_seconds = 0;
  uint64_t max_extents = 0;
  std::string attached_at;  // RFC 3339
  bool paused = false;
};

nlohmann::json to_json(const DeviceEntry& entry);
DeviceEntry entry_from_json(const nlohmann::json& json);  // Error(EINVAL)

// A name that dm, a file name and /dev/mapper take as it is. Error(EINVAL).
void check_device_name(const std::string& name);

// Made from the path of the top, "dmu-vg-cow" of /dev/vg/cow, and, where `taken`
// holds that already, with a number after it.
std::string default_device_name(const std::string& top, const std::set<std::string>& taken);

}  // namespace cowd
