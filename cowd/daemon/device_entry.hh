// SPDX-License-Identifier: GPL-2.0-or-later
// What cowd notes of an attached device, for itself after a restart:
// <run dir>/devices.d/<name>.json. State that matters is in the images.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cowd/daemon/transient.hh"
#include "formats/plugin.hh"

namespace cowd {

// Whose disk it is, if a domain's.
struct DomainNote {
  std::string vm_uuid;  // empty: nobody's; kDomainZero: domain 0's own
  std::string vdev;
  std::string name;               // of the domain, for people
  std::string asked;              // the specification as the domain's configuration has it
  std::vector<std::string> vbds;  // backend/vbd/DOMID/DEVID, those that use it
  std::string last_vbd;           // the one that was the last to leave, once all have left
  // Its transient store outlives it: it was seen suspended (a save, a migration), or
  // rebooting with keep_on_reboot. Once all have left this is final, for the next cowd too.
  bool keep = false;
  bool keep_on_reboot = false;
};

inline constexpr const char* kDomainZero = "00000000-0000-0000-0000-000000000000";

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
  bool top_mapped = true;  // the dm table has the top; else nothing holds its loop device
  std::optional<TransientStore> store;  // of `transient@`; spec has its path
  DomainNote domain;
};

nlohmann::json to_json(const DeviceEntry& entry);
DeviceEntry entry_from_json(const nlohmann::json& json);  // Error(EINVAL)

// A name that dm, a file name and /dev/mapper take as it is. Error(EINVAL).
void check_device_name(const std::string& name);

// Made from the path of the top, "dmu-vg-cow" of /dev/vg/cow, and, where `taken`
// holds that already, with a number after it.
std::string default_device_name(const std::string& top, const std::set<std::string>& taken);

}  // namespace cowd
