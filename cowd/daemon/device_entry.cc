// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/device_entry.hh"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "cowd/core/error.hh"
#include "cowd/core/json.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace {

// device-mapper's own limit is 127; ".json" and a number have to fit too.
constexpr size_t kMaxName = 100;
constexpr int kEntryVersion = 1;

bool name_char(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) ||
         std::string_view("#+-.:=@_").find(c) != std::string_view::npos;
}

}  // namespace

nlohmann::json to_json(const DeviceEntry& entry) {
  return {{"version", kEntryVersion},
          {"name", entry.name},
          {"uuid", entry.uuid},
          {"key", entry.key},
          {"spec", entry.spec},
          {"format", entry.format},
          {"durability", durability_name(entry.durability)},
          {"read_only", entry.read_only},
          {"queue_if_no_daemon", entry.queue_if_no_daemon},
          {"no_daemon_seconds", entry.no_daemon_seconds},
          {"max_extents", entry.max_extents},
          {"attached_at", entry.attached_at},
          {"paused", entry.paused}};
}

DeviceEntry entry_from_json(const nlohmann::json& json) {
  try {
    if (json.at("version").get<int>() != kEntryVersion)
      throw Error(EINVAL, "It was written by another version of cowd.");
    DeviceEntry entry;
    entry.name = json.at("name").get<std::string>();
    entry.uuid = json.at("uuid").get<std::string>();
    entry.key = json.at("key").get<std::string>();
    entry.spec = json.at("spec").get<std::string>();
    entry.format = json.at("format").get<std::string>();
    entry.durability = durability_by_name(json.at("durability").get<std::string>());
    entry.read_only = json.at("read_only").get<bool>();
    entry.queue_if_no_daemon = json.at("queue_if_no_daemon").get<bool>();
    entry.no_daemon_seconds = json.at("no_daemon_seconds").get<unsigned>();
    entry.max_extents = json.at("max_extents").get<uint64_t>();
    entry.attached_at = json.at("attached_at").get<std::string>();
    entry.paused = json.at("paused").get<bool>();
    check_device_name(entry.name);
    return entry;
  } catch (const nlohmann::json::exception& error) {
    throw Error(EINVAL, text("It is not what cowd writes there (", error.what(), ")."));
  }
}

void check_device_name(const std::string& name) {
  bool fine = !name.empty() && name.size() <= kMaxName && name[0] != '.' && name[0] != '-' &&
              name != "control" && std::all_of(name.begin(), name.end(), name_char);
  if (!fine)
    throw Error(EINVAL, text("\"", name, "\" cannot be the name of a device: use 1 to ", kMaxName,
                             " letters, digits and any of #+-.:=@_, not beginning with '.' or "
                             "'-'."));
}

std::string default_device_name(const std::string& top, const std::set<std::string>& taken) {
  std::string path = top.starts_with("/dev/mapper/") ? top.substr(12)
                     : top.starts_with("/dev/")      ? top.substr(5)
                                                     : top.substr(top.rfind('/') + 1);
  std::string name = "dmu-";
  for (char c : path) name += name_char(c) ? c : '-';
  name.resize(std::min(name.size(), kMaxName - 8));
  if (!taken.contains(name)) return name;
  for (unsigned number = 2;; ++number)
    if (std::string numbered = text(name, "-", number); !taken.contains(numbered)) return numbered;
}

}  // namespace cowd
