// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/disk_options.hh"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <set>
#include <vector>

#include "cowd/core/disk_options_toml.hh"
#include "cowd/core/error.hh"
#include "cowd/core/units.hh"

namespace cowd {

namespace fs = std::filesystem;

namespace {

std::string need_string(const toml::value& value, const std::string& where) {
  if (!value.is_string()) throw Error(EINVAL, where + " has to be a string in quotes.");
  return value.as_string().str;
}

bool names(const toml::value& table, const Component& component) {
  if (!table.contains("spec") || !table.at("spec").is_string()) return false;
  const DiskSpec spec = parse_spec(table.at("spec").as_string().str);
  return spec.top == component || (spec.base && *spec.base == component);
}

}  // namespace

DiskOptions check_disk_options(const toml::value& table, const std::string& file) {
  DiskOptions options;
  std::optional<std::string> on_loss;
  std::optional<uint64_t> seconds;
  for (const auto& [key, value] : table.as_table()) {
    if (key == "spec") continue;
    if (key == "on_backing_loss") {
      on_loss = need_string(value, file + ": on_backing_loss");
    } else if (key == "backing_loss_timeout") {
      const auto time = parse_duration(need_string(value, file + ": backing_loss_timeout"),
                                       file + ": backing_loss_timeout");
      seconds = std::max<int64_t>(1, std::chrono::ceil<std::chrono::seconds>(time).count());
    } else {
      throw Error(EINVAL, file + " has the key '" + key +
                              "', which is not known; 'spec', 'on_backing_loss' and "
                              "'backing_loss_timeout' are.");
    }
  }
  if (on_loss && *on_loss != "wait" && *on_loss != "error")
    throw Error(EINVAL, file + ": on_backing_loss has to be \"wait\" or \"error\".");
  if (seconds && on_loss != "error")
    throw Error(EINVAL,
                file + ": backing_loss_timeout needs on_backing_loss = \"error\" beside it.");
  if (on_loss == "wait") options.loss = DiskOptions::Loss{};
  if (on_loss == "error") options.loss = DiskOptions::Loss{seconds.value_or(60)};
  return options;
}

DiskOptions disk_options(const Component& component, const fs::path& dir) {
  std::set<fs::path> paths;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(dir, ignored))
    if (entry.path().extension() == ".toml") paths.insert(entry.path());
  for (const fs::path& path : paths) {
    std::ifstream in(path, std::ios::binary);
    if (!in) continue;
    toml::value table;
    try {
      table = toml::parse(in, path.string());
      if (!table.is_table() || !names(table, component)) continue;
    } catch (const std::exception&) {
      continue;  // whoever uses that disk is told
    }
    return check_disk_options(table, path.string());
  }
  return {};
}

}  // namespace cowd
