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

nlohmann::json to_json(const TransientStore& store) {
  return {{"uuid", store.uuid},       {"where", store.where},     {"path", store.path},
          {"lv_uuid", store.lv_uuid}, {"host_id", store.host_id}, {"boot_id", store.boot_id},
          {"vm_uuid", store.binding.vm_uuid},
          {"vdev", store.binding.vdev},
          {"saved", store.saved},     {"bytes", store.bytes}};
}

TransientStore store_from_json(const nlohmann::json& json) {
  TransientStore store;
  store.uuid = json.at("uuid").get<std::string>();
  store.where = json.at("where").get<std::string>();
  store.path = json.at("path").get<std::string>();
  store.lv_uuid = json.at("lv_uuid").get<std::string>();
  store.host_id = json.at("host_id").get<std::string>();
  store.boot_id = json.at("boot_id").get<std::string>();
  store.binding.vm_uuid = json.at("vm_uuid").get<std::string>();
  store.binding.vdev = json.at("vdev").get<std::string>();
  store.saved = json.at("saved").get<bool>();
  store.bytes = json.at("bytes").get<uint64_t>();
  return store;
}

nlohmann::json to_json(const DomainNote& domain) {
  return {{"vm_uuid", domain.vm_uuid},
          {"vdev", domain.vdev},
          {"name", domain.name},
          {"asked", domain.asked},
          {"vbds", domain.vbds},
          {"last_vbd", domain.last_vbd},
          {"keep", domain.keep},
          {"keep_on_reboot", domain.keep_on_reboot}};
}

DomainNote domain_from_json(const nlohmann::json& json) {
  DomainNote domain;
  domain.vm_uuid = json.at("vm_uuid").get<std::string>();
  domain.vdev = json.at("vdev").get<std::string>();
  domain.name = json.at("name").get<std::string>();
  domain.asked = json.at("asked").get<std::string>();
  domain.vbds = json.at("vbds").get<std::vector<std::string>>();
  domain.last_vbd = json.value("last_vbd", "");  // not of older ones
  domain.keep = json.at("keep").get<bool>();
  domain.keep_on_reboot = json.at("keep_on_reboot").get<bool>();
  return domain;
}

nlohmann::json basic_to_json(const DeviceEntry& entry) {
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
          {"paused", entry.paused},
          {"top_mapped", entry.top_mapped}};
}

}  // namespace

nlohmann::json to_json(const DeviceEntry& entry) {
  nlohmann::json json = basic_to_json(entry);
  if (entry.store) json["store"] = to_json(*entry.store);
  if (!entry.domain.vm_uuid.empty()) json["domain"] = to_json(entry.domain);
  return json;
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
    entry.top_mapped = json.value("top_mapped", true);  // not of older ones
    if (json.contains("store")) entry.store = store_from_json(json.at("store"));
    if (json.contains("domain")) entry.domain = domain_from_json(json.at("domain"));
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
