// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/lvm.hh"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "cowd/core/backing.hh"
#include "cowd/core/child.hh"
#include "cowd/core/error.hh"
#include "cowd/daemon/text.hh"

namespace cowd::lvm {

namespace {

namespace fs = std::filesystem;

// Ours, what was put on top of ours ("part1-DMU-..."), and what we have made block devices of,
// whose server may hang.
std::vector<OwnDevice> own_devices() {
  std::vector<OwnDevice> ours;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/sys/block", ignored)) {
    std::ifstream uuid_file(entry.path() / "dm/uuid"), name_file(entry.path() / "dm/name");
    std::string uuid, name;
    std::getline(uuid_file, uuid);
    std::getline(name_file, name);
    if (uuid.find("DMU-") != std::string::npos)
      ours.push_back({entry.path().filename().string(), name});
  }
  for (const std::string& disk : own_backings()) ours.push_back({disk, {}});
  return ours;
}

// A literal in a regular expression in a quoted string of LVM's: what neither of them
// knows stays, any other character is "any".
std::string literal(const std::string& name) {
  std::string out;
  for (const char c : name)
    out += std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' ? c : '.';
  return out;
}

// Of a disk and its partitions, sdc1 and loop3p1: loop30 is another disk.
std::string with_partitions(const std::string& disk) {
  const bool ends_in_digit = std::isdigit(static_cast<unsigned char>(disk.back()));
  return disk + (ends_in_digit ? "(p[0-9]+)?" : "[0-9]*");
}

// The patterns of a line like global_filter=["a|x|","r|y|"] or global_filter="r|y|".
std::string patterns_of(const std::string& line) {
  const size_t equals = line.find('=');
  if (equals == std::string::npos) return {};
  std::string value = line.substr(equals + 1);
  while (!value.empty() && std::isspace(static_cast<unsigned char>(value.back()))) value.pop_back();
  if (value.starts_with('[') && value.ends_with(']')) value = value.substr(1, value.size() - 2);
  return value;
}

// What lvm.conf says now; asked anew when the file has changed.
std::string host_filter() {
  struct Known {
    fs::file_time_type main, local;
    std::string patterns;
  };
  static std::mutex mutex;
  static std::optional<Known> known;
  std::error_code ignored;
  const auto main = fs::last_write_time("/etc/lvm/lvm.conf", ignored);
  const auto local = fs::last_write_time("/etc/lvm/lvmlocal.conf", ignored);
  const std::lock_guard lock(mutex);
  if (!known || known->main != main || known->local != local) {
    // Status 5: it is not set, and everything is accepted.
    const ChildResult result = run_child({"lvmconfig", "devices/global_filter"}, {kLimit, {}, {}});
    known = {main, local, result.ok() ? patterns_of(result.out) : std::string()};
  }
  return known->patterns;
}

std::vector<std::string> with_config(std::vector<std::string> argv, const std::string& more = {}) {
  argv.insert(argv.begin() + 1, {"--config", config() + more});
  return argv;
}

// LVM has one exit status for all that can go wrong.
int code_of(const std::string& said) {
  const auto has = [&](const char* words) { return said.find(words) != std::string::npos; };
  if (has("insufficient free space") || has("nsufficient suitable")) return ENOSPC;
  if (has("Volume group") && has("not found")) return ENOENT;
  if (has("in use") || has("is used by another")) return EBUSY;
  return EIO;
}

uint64_t number(const std::string& text) { return std::strtoull(text.c_str(), nullptr, 10); }

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
  return parts;
}

}  // namespace

std::string config_text(const std::vector<OwnDevice>& ours, const std::string& global_filter) {
  std::string filter;
  for (const OwnDevice& device : ours) {
    const std::string kernel_name = literal(device.kernel_name), name = literal(device.name);
    if (name.empty())
      filter += text("\"r|^/dev/", with_partitions(kernel_name), "$|\",");
    else
      filter += text("\"r|^/dev/", kernel_name, "$|\",\"r|^/dev/mapper/", name,
                     "$|\",\"r|^/dev/disk/by-id/dm-name-", name, "$|\",");
  }
  if (!filter.empty()) filter += "\"r|^/dev/dmu/|\",\"r|^/dev/disk/by-id/dm-uuid-.*DMU-|\",";
  filter += global_filter;
  if (filter.ends_with(',')) filter.pop_back();
  // Our stores come and go; what they leave in /etc/lvm/archive nobody would ever use, and
  // cowd.service may not write there.
  return (filter.empty() ? std::string() : "devices{global_filter=[" + filter + "]} ") +
         "backup{backup=0 archive=0} activation{process_priority=0}";
}

std::string run(const std::string& purpose, std::vector<std::string> argv) {
  const std::string command = argv.front();
  ChildResult result = run_child(with_config(std::move(argv)), {kLimit, {}, {}});
  if (result.ok()) return std::move(result.out);
  const std::string why = last_words(result.err);
  const int code = code_of(why);
  std::string advice;
  if (code == ENOSPC) advice = " Make the group larger (vgextend), or remove volumes from it.";
  if (code == ENOENT) advice = " \"vgs\" shows the groups that there are.";
  throw Error(code, text(purpose, " failed: ", command, " said: ", why, advice));
}

std::string config() { return config_text(own_devices(), host_filter()); }

std::vector<Pool> pools(const std::vector<std::string>& uuids) {
  std::string selection;
  for (const std::string& uuid : uuids)
    selection += (selection.empty() ? "lv_uuid=" : "||lv_uuid=") + uuid;
  if (selection.empty()) return {};
  const ChildResult result =
      run_child(with_config({"lvs", "--all", "--reportformat", "json", "--units", "b", "--nosuffix",
                             "-o", "lv_uuid,lv_name,vg_name,lv_size,data_percent,metadata_percent",
                             "--select", selection}),
                {kLimit, {}, {}});
  if (result.signal || result.out.empty())
    throw Error(EIO, text("How full the thin pools are cannot be found out: lvs said: ",
                          last_words(result.err)));
  return parse_pools(result.out);
}

std::vector<Volume> volumes(const std::string& selection, std::string* complaints) {
  const std::vector<std::string> argv = {
      "lvs",
      "--reportformat",
      "json",
      "--units",
      "b",
      "--nosuffix",
      "-o",
      "lv_uuid,lv_name,vg_name,lv_path,lv_size,lv_tags,lv_active,lv_device_open,lv_time",
      "--select",
      selection};
  const ChildResult result =
      run_child(with_config(argv, " report{time_format=\"%s\"}"), {kLimit, {}, {}});
  if (result.signal || (!result.ok() && result.out.empty()))
    throw Error(EIO,
                text("The logical volumes cannot be listed: lvs said: ", last_words(result.err)));
  if (!result.ok() && complaints)
    *complaints += text("lvs could not read all volume groups and said: ", last_words(result.err));
  return parse_report(result.out);
}

namespace {

// Calls `read` with a function that gives the fields of each volume in a report.
void each_lv(std::string_view report,
             const std::function<void(const std::function<std::string(const char*)>&)>& read) {
  try {
    const auto json = nlohmann::json::parse(report);
    for (const auto& part : json.at("report")) {
      if (!part.contains("lv")) continue;
      for (const auto& lv : part.at("lv"))
        read([&lv](const char* name) { return lv.at(name).get<std::string>(); });
    }
  } catch (const nlohmann::json::exception& error) {
    throw Error(EPROTO, text("lvs printed something else than the JSON it was asked for (",
                             error.what(), "); which lvm2 is it?"));
  }
}

}  // namespace

std::vector<Volume> parse_report(std::string_view report) {
  std::vector<Volume> list;
  each_lv(report, [&list](const auto& field) {
    Volume volume;
    volume.uuid = field("lv_uuid");
    volume.name = field("lv_name");
    volume.group = field("vg_name");
    volume.path = field("lv_path");
    volume.bytes = number(field("lv_size"));
    volume.tags = split(field("lv_tags"));
    volume.active = !field("lv_active").empty();
    volume.open = field("lv_device_open") == "open";
    volume.created = static_cast<int64_t>(number(field("lv_time")));
    list.push_back(std::move(volume));
  });
  return list;
}

std::vector<Pool> parse_pools(std::string_view report) {
  std::vector<Pool> list;
  each_lv(report, [&list](const auto& field) {
    const std::string data = field("data_percent"), metadata = field("metadata_percent");
    if (data.empty()) return;  // not active
    Pool pool;
    pool.uuid = field("lv_uuid");
    pool.name = field("vg_name") + "/" + field("lv_name");
    pool.bytes = number(field("lv_size"));
    pool.data_percent = std::strtod(data.c_str(), nullptr);
    pool.metadata_percent = std::strtod(metadata.c_str(), nullptr);
    list.push_back(std::move(pool));
  });
  return list;
}

}  // namespace cowd::lvm
