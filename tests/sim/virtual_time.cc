// SPDX-License-Identifier: GPL-2.0-or-later
// Two functions of the system's libraries are the program's own here: the clock, and the timer that
// Asio would wait with, without which it asks the clock at each turn.
#include "tests/sim/virtual_time.hh"

#include <sys/timerfd.h>

#include <cerrno>

namespace {

std::chrono::nanoseconds now{0};

}  // namespace

std::chrono::steady_clock::time_point std::chrono::steady_clock::now() noexcept {
  return time_point(std::chrono::hours(1) + ::now);
}

extern "C" int timerfd_create(int, int) noexcept {
  errno = ENOSYS;
  return -1;
}

namespace cowd::sim {

std::chrono::nanoseconds virtual_time() { return ::now; }

void let_time_pass(std::chrono::nanoseconds duration) { ::now += duration; }

}  // namespace cowd::sim
