// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/config.hh"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <functional>
#include <sstream>

#include "build/config.h"
#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/core/json.hh"
#include "cowd/core/spec.hh"
#include "cowd/core/toml.hh"
#include "cowd/core/units.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace {

using Value = toml::value;

// A wrong value, in words; the caller adds where it is.
struct Wrong {
  std::string what;
};

std::string as_string(const Value& value) {
  if (!value.is_string()) throw Wrong{"has to be a string in quotes"};
  return value.as_string().str;
}

std::string as_path(const Value& value) {
  std::string path = as_string(value);
  if (path.empty() || path[0] != '/') throw Wrong{"has to be an absolute path"};
  return path;
}

bool as_bool(const Value& value) {
  if (!value.is_boolean()) throw Wrong{"has to be true or false"};
  return value.as_boolean();
}

uint64_t as_number(const Value& value, uint64_t least, uint64_t most) {
  if (!value.is_integer() || value.as_integer() < 0 ||
      static_cast<uint64_t>(value.as_integer()) < least ||
      static_cast<uint64_t>(value.as_integer()) > most)
    throw Wrong{text("has to be a whole number from ", least, " to ", most)};
  return static_cast<uint64_t>(value.as_integer());
}

std::chrono::milliseconds as_duration(const Value& value, std::chrono::milliseconds least,
                                      std::chrono::milliseconds most) {
  std::string range = text("has to be a time from ", format_duration(least), " to ",
                           format_duration(most), ", such as \"500ms\" or \"5s\"");
  if (!value.is_string()) throw Wrong{range};
  std::chrono::milliseconds duration{};
  try {
    duration = parse_duration(value.as_string().str, "it");
  } catch (const Error&) {
    throw Wrong{range};
  }
  if (duration < least || duration > most) throw Wrong{range};
  return duration;
}

uint64_t as_size(const Value& value, uint64_t least, uint64_t most) {
  std::string range = text("has to be a size from ", format_size(least), " to ", format_size(most),
                           ", such as \"32M\"");
  if (!value.is_string()) throw Wrong{range};
  uint64_t size = 0;
  try {
    size = parse_size(value.as_string().str, "it");
  } catch (const Error&) {
    throw Wrong{range};
  }
  if (size < least || size > most) throw Wrong{range};
  return size;
}

std::vector<std::string> as_strings(const Value& value,
                                    const std::function<std::string(const Value&)>& element) {
  if (!value.is_array()) throw Wrong{"has to be a list in brackets"};
  std::vector<std::string> list;
  for (const auto& each : value.as_array()) list.push_back(element(each));
  return list;
}

Level as_level(const Value& value) {
  auto level = level_from_name(as_string(value));
  if (!level) throw Wrong{"has to be one of \"debug\", \"info\", \"warning\", \"error\""};
  return *level;
}

std::vector<LogTarget> as_targets(const Value& value) {
  std::vector<LogTarget> targets;
  for (const auto& name : as_strings(value, as_string)) {
    auto target = log_target_from_name(name);
    if (!target) throw Wrong{"may hold \"journald\", \"syslog\", \"file\" and \"console\""};
    targets.push_back(*target);
  }
  if (targets.empty())
    throw Wrong{"has to hold at least one of \"journald\", \"syslog\", \"file\", \"console\""};
  return targets;
}

// One of two words; true for the first.
bool as_choice(const Value& value, const char* yes, const char* no) {
  std::string word = as_string(value);
  if (word != yes && word != no) throw Wrong{text("has to be \"", yes, "\" or \"", no, "\"")};
  return word == yes;
}

Durability as_durability(const Value& value) {
  try {
    return durability_by_name(as_string(value));
  } catch (const Error&) {
    throw Wrong{"has to be one of \"flush\", \"always\", \"transient\""};
  }
}

struct Key {
  const char* table;
  const char* name;
  std::function<void(Config&, const Value&)> set;
};

using std::chrono::hours;
using std::chrono::milliseconds;

// In the order of docs/configuration.md.
const std::vector<Key>& keys() {
  static const std::vector<Key> list = {
      {"paths", "run_dir", [](Config& c, const Value& v) { c.paths.run_dir = as_path(v); }},
      {"paths", "socket", [](Config& c, const Value& v) { c.paths.socket = as_path(v); }},
      {"paths", "disks_dir", [](Config& c, const Value& v) { c.paths.disks_dir = as_path(v); }},
      {"paths", "plugin_dirs",
       [](Config& c, const Value& v) { c.paths.plugin_dirs = as_strings(v, as_path); }},
      {"paths", "reference_roots",
       [](Config& c, const Value& v) { c.paths.reference_roots = as_strings(v, as_path); }},

      {"log", "level", [](Config& c, const Value& v) { c.log.level = as_level(v); }},
      {"log", "targets", [](Config& c, const Value& v) { c.log.targets = as_targets(v); }},
      {"log", "file", [](Config& c, const Value& v) { c.log.file = as_path(v); }},

      {"control", "max_clients",
       [](Config& c, const Value& v) {
         c.control.max_clients = static_cast<unsigned>(as_number(v, 1, 1000));
       }},

      {"devices", "durability",
       [](Config& c, const Value& v) { c.devices.durability = as_durability(v); }},
      {"devices", "no_daemon",
       [](Config& c, const Value& v) {
         c.devices.queue_if_no_daemon = as_choice(v, "queue", "fail");
       }},
      {"devices", "no_daemon_seconds",
       [](Config& c, const Value& v) {
         c.devices.no_daemon_seconds = static_cast<unsigned>(as_number(v, 0, 86400));
       }},
      {"devices", "max_extents",
       [](Config& c, const Value& v) { c.devices.max_extents = as_number(v, 0, 1U << 30); }},
      {"devices", "metadata_cache",
       [](Config& c, const Value& v) {
         c.devices.metadata_cache = as_size(v, 1U << 20, 1U << 30);
       }},
      {"devices", "keep_on_reboot",
       [](Config& c, const Value& v) { c.devices.keep_on_reboot = as_bool(v); }},
      {"devices", "store_directories",
       [](Config& c, const Value& v) { c.devices.store_directories = as_strings(v, as_path); }},
      {"devices", "commit_interval",
       [](Config& c, const Value& v) {
         c.devices.session.commit_interval = as_duration(v, milliseconds(10), milliseconds(60000));
       }},
      {"devices", "max_requests",
       [](Config& c, const Value& v) {
         c.devices.session.max_requests = static_cast<unsigned>(as_number(v, 1, 4096));
       }},
      {"devices", "no_space",
       [](Config& c, const Value& v) {
         c.devices.session.no_space = as_choice(v, "wait", "fail") ? SessionSettings::NoSpace::wait
                                                                   : SessionSettings::NoSpace::fail;
       }},
      {"devices", "no_space_retry",
       [](Config& c, const Value& v) {
         c.devices.session.no_space_retry = as_duration(v, milliseconds(100), hours(1));
       }},
      {"devices", "no_space_timeout",
       [](Config& c, const Value& v) {
         c.devices.session.no_space_timeout = as_duration(v, milliseconds(0), hours(24 * 365));
       }},
      {"devices", "on_backing_loss",
       [](Config& c, const Value& v) {
         c.devices.wait_for_backing = as_choice(v, "wait", "error");
       }},
      {"devices", "backing_loss_timeout",
       [](Config& c, const Value& v) {
         c.devices.backing_loss_timeout = std::chrono::ceil<std::chrono::seconds>(
             as_duration(v, milliseconds(1000), hours(24 * 365)));
       }},

      {"space", "interval",
       [](Config& c, const Value& v) {
         c.space.interval = as_duration(v, milliseconds(0), hours(1));
       }},
      {"space", "low",
       [](Config& c, const Value& v) {
         c.space.low = static_cast<unsigned>(as_number(v, 10, 95));
       }},
      {"space", "hook", [](Config& c, const Value& v) { c.space.hook = as_path(v); }},
      {"space", "hook_timeout",
       [](Config& c, const Value& v) {
         c.space.hook_timeout = as_duration(v, milliseconds(1000), hours(1));
       }},
      {"space", "hook_interval",
       [](Config& c, const Value& v) {
         c.space.hook_interval = as_duration(v, milliseconds(1000), hours(24));
       }},

      {"process", "threads",
       [](Config& c, const Value& v) {
         c.process.threads = static_cast<unsigned>(as_number(v, 1, 64));
       }},
      {"process", "lock_memory",
       [](Config& c, const Value& v) { c.process.lock_memory = as_bool(v); }},
      {"process", "io_flusher",
       [](Config& c, const Value& v) { c.process.io_flusher = as_bool(v); }},
      {"process", "oom_protect",
       [](Config& c, const Value& v) { c.process.oom_protect = as_bool(v); }},
      {"process", "private_mounts",
       [](Config& c, const Value& v) { c.process.private_mounts = as_bool(v); }},
  };
  return list;
}

[[noreturn]] void refuse(const std::string& file, const Value& value, const std::string& what) {
  throw Error(EINVAL, text(file, ":", value.location().line(), ": ", what));
}

bool table_known(const std::string& table) {
  return std::any_of(keys().begin(), keys().end(),
                     [&](const Key& key) { return table == key.table; });
}

void set_key(Config& config, const std::string& file, const std::string& table,
             const std::string& name, const Value& value) {
  auto key = std::find_if(keys().begin(), keys().end(), [&](const Key& each) {
    return table == each.table && name == each.name;
  });
  if (key == keys().end())
    refuse(file, value,
           text("there is no key ", name, " in [", table,
                "]. cowd.toml(5) lists the keys; remove or correct it."));
  try {
    key->set(config, value);
  } catch (const Wrong& wrong) {
    refuse(file, value, text(table, ".", name, " ", wrong.what, "."));
  }
}

void check_whole(const Config& config, const std::string& file) {
  const auto& targets = config.log.targets;
  if (std::find(targets.begin(), targets.end(), LogTarget::file) != targets.end() &&
      config.log.file.empty())
    throw Error(EINVAL, text(file, ": log.targets holds \"file\", so log.file has to name one."));
}

}  // namespace

Config default_config() {
  Config config;
  config.paths.run_dir = COWD_RUN_DIR;
  config.paths.disks_dir = kDisksDir;
  config.log.targets = {LogTarget::journald};
  config.devices.store_directories = {COWD_STATE_DIR};
  return config;
}

Config parse_config(std::string_view text_of_file, const std::string& name) {
  Config config = default_config();
  const Value root = parse_toml(std::string(text_of_file), name);
  for (const auto& [table, content] : root.as_table()) {
    if (!table_known(table))
      refuse(name, content,
             text("there is no table [", table,
                  "]. cowd.toml(5) lists the tables; remove or correct it."));
    if (!content.is_table())
      refuse(name, content, text(table, " has to be a table: [", table, "]."));
    for (const auto& [key, value] : content.as_table()) set_key(config, name, table, key, value);
  }
  check_whole(config, name);
  return config;
}

Config load_config(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream content;
  errno = 0;
  if (!in || !(content << in.rdbuf())) {
    // An empty file makes << fail without an error.
    if (!in || errno)
      throw Error(errno ? errno : EIO, text("The configuration ", path,
                                            " cannot be read: ", errno_text(errno ? errno : EIO),
                                            ". Correct its permissions, or name "
                                            "another file with --config."));
  }
  return parse_config(content.str(), path);
}

std::vector<std::string> config_keys() {
  std::vector<std::string> names;
  for (const Key& key : keys()) names.push_back(text(key.table, ".", key.name));
  return names;
}

}  // namespace cowd
