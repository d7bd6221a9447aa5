// SPDX-License-Identifier: GPL-2.0-or-later
// Taking memory until hardly any is free.
#pragma once

#include <poll.h>
#include <sys/mman.h>

#include <cstdint>
#include <fstream>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace hog {

inline uint64_t free_kib() {
  std::ifstream in("/proc/meminfo");
  std::string word;
  uint64_t value = 0;
  while (in >> word) {
    if (word == "MemFree:" && in >> value) return value;
    in.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::numeric_limits<uint64_t>::max();
}

// Takes memory until `leave_kib` are free, calls `full` once, and keeps it so: takes what
// becomes free, gives some back before the kernel would have to kill somebody. The caller is
// the one it kills if it has to.
[[noreturn]] inline void eat(uint64_t leave_kib, const std::function<void()>& full) {
  std::ofstream("/proc/self/oom_score_adj") << 1000;
  std::vector<std::pair<void*, size_t>> eaten;
  bool told = false;
  for (;;) {
    const uint64_t left_kib = free_kib();
    if (left_kib > leave_kib) {
      // Fast while there is much.
      const size_t step = left_kib > leave_kib + (128U << 10) ? 64U << 20 : 2U << 20;
      void* at = mmap(nullptr, step, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
      if (at != MAP_FAILED) eaten.emplace_back(at, step);
      continue;
    }
    if (!std::exchange(told, true)) full();
    if (left_kib < leave_kib / 2 && !eaten.empty()) {
      munmap(eaten.back().first, eaten.back().second);
      eaten.pop_back();
    } else {
      poll(nullptr, 0, 2);
    }
  }
}

}  // namespace hog
