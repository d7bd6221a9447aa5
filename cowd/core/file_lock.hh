// SPDX-License-Identifier: GPL-2.0-or-later
// flock() that does not wait for ever.
#pragma once

#include <chrono>

namespace cowd {

// The lock, alone. False: somebody else had it all the time, or errno. No event tells that a lock
// is free, so that it is asked for again and again.
bool lock_within(int fd, std::chrono::milliseconds limit);

}  // namespace cowd
