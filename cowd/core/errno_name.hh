// SPDX-License-Identifier: GPL-2.0-or-later
// Errnos by name, for JSON and logs.
#pragma once

#include <string>
#include <string_view>

#include "cowd/core/error.hh"

namespace cowd {

std::string errno_name(int code);          // "EBUSY"; "E-123" for one without a name
int errno_by_name(std::string_view name);  // EIO for an unknown name
std::string errno_text(int code);          // "Device or resource busy"

// "cannot open /dev/vg/cow: No such file or directory" with `code`.
Error system_error(int code, const std::string& what);

}  // namespace cowd
