// SPDX-License-Identifier: GPL-2.0-or-later
// Device-mapper as devices see it through libdmu, in memory: what has this linked has no other.
// No I/O, no promotions; a channel says REPLAY_DONE and, later, that its device is gone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cowd::fake_dm {

struct Device {
  std::string uuid;
  std::string key;
  uint64_t sectors = 0;
  std::vector<std::string> dests;  // "major:minor"
  uint32_t open_count = 0;
  bool wiped = false;     // its table is one of errors
  bool deferred = false;  // removed at the last close
};

void clear();
bool has(const std::string& name);
Device look(const std::string& name);  // it has to be there
void set_open(const std::string& name, uint32_t count);

}  // namespace cowd::fake_dm
