// SPDX-License-Identifier: GPL-2.0-or-later
// The length of a file that was made longer for what might be written to it.
#pragma once

#include <cstdint>

namespace cowd {

// Makes the file `bytes` long again if it is longer and nothing was written behind that. Returns
// an errno, 0 for success.
int cut_unwritten(int fd, uint64_t bytes);

}  // namespace cowd
