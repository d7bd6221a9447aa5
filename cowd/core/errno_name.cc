// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/errno_name.hh"

#include <cstring>

namespace cowd {

std::string errno_name(int code) {
  const char* name = strerrorname_np(code);
  return name && code != 0 ? name : "E-" + std::to_string(code);
}

int errno_by_name(std::string_view name) {
  for (int code = 1; code < 256; ++code) {
    const char* known = strerrorname_np(code);
    if (known && name == known) return code;
  }
  return EIO;
}

std::string errno_text(int code) {
  const char* text = strerrordesc_np(code);
  return text ? text : "error " + std::to_string(code);
}

Error system_error(int code, const std::string& what) {
  return Error(code, what + ": " + errno_text(code) + ".");
}

}  // namespace cowd
