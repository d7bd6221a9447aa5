// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/file_length.hh"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace cowd {

int cut_unwritten(int fd, uint64_t bytes) {
  struct stat info {};
  if (fstat(fd, &info) < 0) return errno;
  if (static_cast<uint64_t>(info.st_size) <= bytes) return 0;
  // The block in which it ended is data to its end.
  const auto block = static_cast<uint64_t>(info.st_blksize);
  const auto behind = static_cast<off_t>((bytes + block - 1) / block * block);
  const bool hole = lseek(fd, behind, SEEK_DATA) < 0 && errno == ENXIO;
  return hole && ftruncate(fd, static_cast<off_t>(bytes)) < 0 ? errno : 0;
}

}  // namespace cowd
