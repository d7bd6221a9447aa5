// SPDX-License-Identifier: GPL-2.0-or-later
// Many small I/Os at once, from one coroutine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "formats/common/bytes.hh"
#include "formats/plugin.hh"

namespace cowd {

// Runs work(0) ... work(count - 1) on the caller's executor, at most `limit` of
// them at a time. Returns when all that were begun have ended. After the first
// exception nothing new is begun, and that exception is thrown in the end.
Task<> for_each_parallel(size_t count, size_t limit, std::function<Task<>(size_t)> work);

// Each at its offset; all are durable when it returns. One is one request.
using Writes = std::vector<std::pair<uint64_t, std::shared_ptr<Buffer>>>;
Task<> write_durably(Disk& disk, const Writes& writes);

}  // namespace cowd
