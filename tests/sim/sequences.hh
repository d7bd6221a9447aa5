// SPDX-License-Identifier: GPL-2.0-or-later
// How many random sequences a test plays, and from which seed on. COWD_SEQUENCES and COWD_SEED say
// something else than the test does; COWD_CRASHES does so for tests in which the power is cut at
// every moment of a sequence (make check-long-formats).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>

namespace cowd::sim {

struct Seeds {
  uint64_t first = 1;
  uint64_t count = 0;
  uint64_t end() const { return first + count; }
};

inline uint64_t from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::stoull(text) : otherwise;
}

inline Seeds seeds(uint64_t otherwise, const char* count = "COWD_SEQUENCES") {
  return {from_environment("COWD_SEED", 1), from_environment(count, otherwise)};
}

inline Seeds crash_seeds(uint64_t otherwise) { return seeds(otherwise, "COWD_CRASHES"); }

// For SCOPED_TRACE: how to see it once more.
inline std::string again(uint64_t seed, const char* count = "COWD_SEQUENCES") {
  return std::string("again: ") + count + "=1 COWD_SEED=" + std::to_string(seed);
}

}  // namespace cowd::sim
