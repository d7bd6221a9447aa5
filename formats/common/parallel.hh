// SPDX-License-Identifier: GPL-2.0-or-later
// Many small I/Os at once, from one coroutine.
#pragma once

#include <cstddef>
#include <functional>

#include "formats/plugin.hh"

namespace cowd {

// Runs work(0) ... work(count - 1) on the caller's executor, at most `limit` of
// them at a time. Returns when all that were begun have ended. After the first
// exception nothing new is begun, and that exception is thrown in the end.
Task<> for_each_parallel(size_t count, size_t limit, std::function<Task<>(size_t)> work);

}  // namespace cowd
