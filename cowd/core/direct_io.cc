// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/direct_io.hh"

#include <fcntl.h>
#include <linux/stat.h>
#include <sys/stat.h>

namespace cowd {

uint32_t direct_io_alignment([[maybe_unused]] int fd) {
#ifdef STATX_DIOALIGN
  struct statx info {};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) == 0 &&
      (info.stx_mask & STATX_DIOALIGN) && info.stx_dio_offset_align > 512)
    return 4096;
#endif
  return 512;
}

}  // namespace cowd
