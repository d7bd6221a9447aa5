// SPDX-License-Identifier: GPL-2.0-or-later
// Sentences put together from parts.
#pragma once

#include <sstream>
#include <string>

namespace cowd {

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

}  // namespace cowd
