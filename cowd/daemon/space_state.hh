// SPDX-License-Identifier: GPL-2.0-or-later
// What is known of one file system or pool, and what is to be done about it. Pure: whoever
// looks brings the figures and the time.
//
//   low   from a look that finds it at least `low` percent full, to one that finds it kBack
//         points below that: it neither comes nor goes with each block written.
//   hook  is due while it is low (writes can only wait in what is), whenever it has not been
//         begun for hook_interval; never twice at a time.
#pragma once

#include <chrono>

#include "cowd/daemon/config.hh"
#include "cowd/daemon/space.hh"

namespace cowd {

class SpaceState {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Change { none, low, ok };
  static constexpr double kBack = 5;  // percentage points

  explicit SpaceState(const Config::Space& settings) : settings_(&settings) {}

  Change judge(const SpaceFigures& figures);
  const SpaceFigures& figures() const { return figures_; }  // of the last look
  bool low() const { return low_; }

  // True: run it, and say when it has ended.
  bool begin_hook(Clock::time_point now);
  void end_hook() { hook_runs_ = false; }
  bool hook_runs() const { return hook_runs_; }

 private:
  const Config::Space* settings_;
  SpaceFigures figures_;
  bool low_ = false;
  bool hook_runs_ = false;
  bool hook_ran_ = false;
  Clock::time_point hook_begun_{};
};

// "The thin pool vg/pool is 81.2 % full (1.2 GiB of 1.5 GiB, its metadata 3.4 %)".
std::string how_full(SpaceId::Kind kind, const SpaceFigures& figures);
// "a, b, c and 4 more".
std::string name_some(const std::vector<std::string>& names);

}  // namespace cowd
