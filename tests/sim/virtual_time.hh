// SPDX-License-Identifier: GPL-2.0-or-later
// For a program that links virtual_time.cc std::chrono::steady_clock stands still, and so do the
// timers of its event loops, until it is moved on: hours of waiting take no time, and a run can be
// repeated.
#pragma once

#include <chrono>

namespace cowd::sim {

// Since the program began.
std::chrono::nanoseconds virtual_time();
void let_time_pass(std::chrono::nanoseconds duration);

}  // namespace cowd::sim
