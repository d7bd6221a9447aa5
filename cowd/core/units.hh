// SPDX-License-Identifier: GPL-2.0-or-later
// Sizes and times as people write and read them: qemu-img's conventions.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace cowd {

// "4096", "4k", "1.5G", "2TiB": binary multiples k M G T P E, b for bytes, either
// case. `what` begins the sentence of the Error(EINVAL): "the size", "--granule".
uint64_t parse_size(std::string_view text, std::string_view what);

// "4 KiB", "1.5 GiB": three significant digits, as qemu-img prints them.
std::string format_size(uint64_t bytes);

// "250ms", "10s" or "10", "5m", "2h".
std::chrono::milliseconds parse_duration(std::string_view text, std::string_view what);
std::string format_duration(std::chrono::milliseconds duration);  // "250 ms", "1.5 s", "2 min"

// "2026-11-22T22:11:16.123Z", UTC.
std::string format_rfc3339(std::chrono::system_clock::time_point time);

}  // namespace cowd
