// SPDX-License-Identifier: GPL-2.0-or-later
// Keeps one kind of message from filling the log.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

namespace cowd {

// Lets `burst` messages through in each window and counts the rest. Not locked:
// one owner, one strand.
class RateLimit {
 public:
  using Clock = std::chrono::steady_clock;

  RateLimit(unsigned burst, Clock::duration window) : burst_(burst), window_(window) {}

  // Nothing: say nothing now. Otherwise how many have been left out since the
  // last one that was let through.
  std::optional<uint64_t> pass(Clock::time_point now = Clock::now()) {
    if (!started_ || now - begin_ >= window_) {
      started_ = true;
      begin_ = now;
      used_ = 0;
    }
    if (used_ >= burst_) {
      ++left_out_;
      return std::nullopt;
    }
    ++used_;
    uint64_t count = left_out_;
    left_out_ = 0;
    return count;
  }

 private:
  unsigned burst_;
  Clock::duration window_;
  bool started_ = false;
  Clock::time_point begin_{};
  unsigned used_ = 0;
  uint64_t left_out_ = 0;
};

}  // namespace cowd
