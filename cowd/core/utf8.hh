// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <string_view>

namespace cowd {

// Whether `text` is UTF-8 (RFC 3629): what JSON can carry.
bool is_utf8(std::string_view text);

}  // namespace cowd
