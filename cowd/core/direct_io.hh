// SPDX-License-Identifier: GPL-2.0-or-later
#pragma once

#include <cstdint>

namespace cowd {

// The alignment that direct I/O on this open regular file needs: 512 or 4096 bytes.
uint32_t direct_io_alignment(int fd);

}  // namespace cowd
