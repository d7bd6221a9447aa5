// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <string>
#include <toml.hpp>

namespace cowd {

// The TOML (1.0) in `text`; `file` is named where it is said what is wrong. Throws
// Error(EINVAL) with the line, but nothing of what the line holds: it may be a password.
// What toml11 does not survive (3.7.1: bytes that are not UTF-8, tables and arrays
// thousands deep) is refused before it sees it.
toml::value parse_toml(const std::string& text, const std::string& file);

}  // namespace cowd
