// SPDX-License-Identifier: GPL-2.0-or-later
// libdmu's device half in C++. Every function may block: off the strands only, as
// the device it waits for may be one that a strand serves. All throw Error.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace cowd::dm {

struct Info {
  std::string name;
  std::string uuid;  // DMU-...
  std::string path;  // /dev/mapper/...
  std::string dev;   // "253:3"
  unsigned open_count = 0;
  bool suspended = false;
  bool read_only = false;
};

struct Dest {
  std::string dev;  // "253:1"
  bool writable = false;
};

struct NewDevice {
  std::string name;
  std::string uuid;
  std::string key;
  uint64_t sectors = 0;
  std::vector<Dest> dests;
  bool read_only = false;
  bool queue_if_no_daemon = true;
  unsigned no_daemon_seconds = 0;
  uint32_t max_extents = 0;
  uint32_t discard_granularity = 0;  // bytes
};

struct Table {
  uint64_t sectors = 0;
  std::string key;
  std::vector<Dest> dests;
};

Info create(const NewDevice& device);
void suspend(const std::string& name);  // noflush, and no file system is frozen
void resume(const std::string& name);
void remove(const std::string& name);
void remove_deferred(const std::string& name);  // at the last close; fine if it is gone
void wipe(const std::string& name);             // all its I/O fails from now on; likewise
std::optional<Info> find(const std::string& name);  // nothing: there is none
Info info(const std::string& name);
Table table(const std::string& name);
nlohmann::json status(const std::string& name);
std::vector<Info> list();  // devices with the target `userspace`

// "MAJOR:MINOR".
std::string dev_text(uint64_t dev);

}  // namespace cowd::dm
