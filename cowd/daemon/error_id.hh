// SPDX-License-Identifier: GPL-2.0-or-later
// Names for failures, so that what a user reads can be found in the log.
#pragma once

#include <string>

namespace cowd {

// "e-" and eight hexadecimal digits; another one each time. Any thread.
std::string new_error_id();

}  // namespace cowd
