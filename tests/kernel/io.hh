// SPDX-License-Identifier: GPL-2.0-or-later
// Direct I/O with contents that can be told apart: each sector holds a function of
// a seed and its own number, so that a stale, torn or misplaced one is found.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "tests/kernel/case.hh"

namespace dmutest {

using Seed = uint32_t;
constexpr Seed kZeroes = 0;  // the seed of sectors that are all zero

// Page-aligned memory, as O_DIRECT wants it.
class Buffer {
 public:
  explicit Buffer(uint64_t sectors);
  uint8_t* data() { return data_.get(); }
  uint64_t sectors() const { return sectors_; }
  // As the sectors from `first` on look after a write with `seed`.
  void fill(Seed seed, uint64_t first);
  // The seed of sector i of the buffer, if it is sector `first` + i of a disk; ~0 if none fits.
  Seed seed_of(uint64_t i, uint64_t first) const;

 private:
  std::unique_ptr<uint8_t, void (*)(void*)> data_;
  uint64_t sectors_;
};

// One operation on a thread of its own. Results are bytes or a negative errno.
class Io {
 public:
  explicit Io(std::function<long()> work);
  bool done() const;
  // Waits for it; fails the case if it takes longer than `limit`.
  long result(Ms limit = kSoon);

 private:
  std::shared_future<long> future_;
};

// A block device opened with O_DIRECT. Sectors are 512 bytes.
class File {
 public:
  explicit File(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }

  // Now, in this thread: bytes or a negative errno. flags: RWF_*.
  long write_now(uint64_t sector, uint64_t len, Seed seed, int flags = 0) const;
  long read_now(uint64_t sector, Buffer& into, int flags = 0) const;
  long sync_now() const;
  long discard_now(uint64_t sector, uint64_t len) const;
  long zeroout_now(uint64_t sector, uint64_t len) const;

  // The same on a thread of their own.
  Io write(uint64_t sector, uint64_t len, Seed seed, int flags = 0) const;
  Io read(uint64_t sector, uint64_t len) const;
  Io sync() const;
  Io discard(uint64_t sector, uint64_t len) const;
  Io zeroout(uint64_t sector, uint64_t len) const;

  // Writes all of it and fails if that does not work. For disks, and for served devices.
  void fill(uint64_t sector, uint64_t len, Seed seed) const;
  // Empty if [sector, sector + len) reads as `seed`, else what differs first.
  std::string difference(uint64_t sector, uint64_t len, Seed seed) const;

 private:
  int fd_;
};

// Fills or compares a whole disk, opened just for that.
void fill_disk(const std::string& path, uint64_t sector, uint64_t len, Seed seed);

}  // namespace dmutest

// The sectors read as `seed`.
#define CHECK_READS(file, sector, len, seed)                               \
  do {                                                                     \
    std::string differs = (file).difference((sector), (len), (seed));      \
    if (!differs.empty()) dmutest::fail(__FILE__, __LINE__, differs);      \
  } while (0)
