// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/file_lock.hh"

#include <sys/file.h>

#include <cerrno>
#include <thread>

namespace cowd {

namespace {

constexpr auto kPause = std::chrono::milliseconds(20);

}  // namespace

bool lock_within(int fd, std::chrono::milliseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
    if ((errno != EWOULDBLOCK && errno != EINTR) || std::chrono::steady_clock::now() >= end)
      return false;
    std::this_thread::sleep_for(kPause);
  }
  return true;
}

}  // namespace cowd
