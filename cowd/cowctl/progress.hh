// SPDX-License-Identifier: GPL-2.0-or-later
// A line on stderr for work that takes longer than a second.
#pragma once

#include <utility>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "cowd/cowctl/context.hh"

namespace cowctl {

// Shown after a second, if stderr is a terminal or --progress is given, and not with
// --quiet; erased (on a terminal) when this object goes.
class ProgressLine {
 public:
  ProgressLine(Context& context, std::string what);
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void update(uint64_t done, uint64_t total);
  void update(uint64_t done, uint64_t total, const std::string& what);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

// "checking /dev/vg/cow: 12.5 %", or with total 0 "...: 3 s".
std::string progress_text(const std::string& what, uint64_t done, uint64_t total,
                          std::chrono::milliseconds elapsed);

}  // namespace cowctl
