// SPDX-License-Identifier: GPL-2.0-or-later
// Detached threads with a stack of a chosen size: under mlockall() a whole stack is
// resident from the start, and the usual 8 MiB would be dear.
#pragma once

#include <cstddef>
#include <functional>

namespace cowd {

// All signals are blocked in it. False if the host gives no more threads.
bool start_thread(std::function<void()> work, size_t stack_bytes);

}  // namespace cowd
