// SPDX-License-Identifier: GPL-2.0-or-later
// The daemon's log. Writing never blocks: the disk or the journal at its end may
// lie on a device that cowd itself serves. Records go through a bounded queue to
// a thread of the sink; what does not fit is dropped and counted.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cowd {

enum class Level { debug, info, warning, error };

std::string_view level_name(Level level);
std::optional<Level> level_from_name(std::string_view name);

// Where the log goes.
enum class LogTarget { console, file, journald, syslog };

std::optional<LogTarget> log_target_from_name(std::string_view name);

struct LogSettings {
  Level level = Level::info;
  std::vector<LogTarget> targets = {LogTarget::console};
  std::string file;  // for LogTarget::file
};

// Records that wait for one sink at most.
inline constexpr size_t kLogQueue = 4096;

// Opens the sinks, closing those of an earlier call (so a rotated file is opened
// again). Throws Error when the file cannot be opened; the old sinks stay then.
// May block; not on the reactor.
void open_log(const LogSettings& settings);

// Writes out what is queued and closes the sinks. May block.
void close_log();

void set_log_level(Level level);
Level log_level();

// What a record is about; both may be empty.
struct LogContext {
  std::string_view device;
  std::string_view id;  // e-XXXXXXXX
};

// Any thread; never blocks.
void log(Level level, std::string_view sentence, LogContext context = {});

// Records dropped since the start because a queue was full.
uint64_t log_dropped();

}  // namespace cowd
