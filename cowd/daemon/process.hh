// SPDX-License-Identifier: GPL-2.0-or-later
// What a process in the I/O path owes to the host: it must never wait for memory,
// for a file system or for a log that waits for it.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cowd/daemon/config.hh"

namespace cowd {

// Stacks of threads that do not choose their own; resident as a whole under mlockall().
inline constexpr size_t kStackBytes = 512 << 10;

// To be called before the first thread is made, as flags and limits are inherited.
// Closes inherited files, leaves the current directory, then what `settings` asks
// for. What the host does not permit comes back as sentences to log.
std::vector<std::string> prepare_process(const Config::Process& settings);

// {"resident_bytes", "threads", ...} for `cowctl stats`.
nlohmann::json process_stats();

}  // namespace cowd
