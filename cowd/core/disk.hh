// SPDX-License-Identifier: GPL-2.0-or-later
// BlockDisk: a block device as a Disk; a regular file too, for tools on images that
// nobody serves (what is served goes through a loop device).
//
// A file that ends within a block goes on with zeroes to the end of that.
// Data goes through aligned bounce buffers, so callers may pass any memory; offsets
// and lengths must be multiples of block_size(). At most kWays requests of one disk
// are under way, the rest wait in order. A coroutine that is destroyed in the middle
// leaves no I/O into freed memory behind.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <memory>
#include <string>

#include "cowd/core/async_io.hh"
#include "formats/plugin.hh"

namespace cowd {

class DiskState;

class BlockDisk : public Disk {
 public:
  enum class Open {
    read_only,
    writable,
    // Writable, and refused with EBUSY while the kernel has the device claimed (a
    // mounted file system, a dm or md device, LVM's lvmlockd...). The claim is tried
    // and given up at once: device-mapper has to take it for our own table.
    writable_unclaimed,
  };
  // Opening may block for as long as the device hangs: call it off the strands
  // (blocking.hh). Throws Error, naming path. O_DIRECT, except for a regular file on
  // a file system that has none.
  static std::shared_ptr<BlockDisk> open(std::shared_ptr<AsyncIo> io, const std::string& path,
                                         Open how);
  ~BlockDisk() override;

  Task<> read_at(uint64_t offset, std::span<std::byte> out) override;
  Task<> write_at(uint64_t offset, std::span<const std::byte> in) override;
  Task<> flush() override;
  // By FUA where it is one request: without the worker thread that a sync takes (async_io.hh).
  Task<> write_durably(uint64_t offset, std::span<const std::byte> in) override;
  uint64_t size() const override;  // bytes, as of opening or the last refresh_size()
  uint32_t block_size() const override;
  bool read_only() const override;
  const std::string& name() const override;
  Task<> resize(uint64_t bytes) override;
  int64_t modified() const override;

  // Asks the device again; returns the new size. Does not block.
  uint64_t refresh_size();
  dev_t device() const;  // of the block device; 0 for a regular file
  int fd() const;        // stays ours
  // What sentences call it, where that is not the path opened: the file behind a loop device.
  void set_name(const std::string& name);

  static constexpr unsigned kWays = 8;

 private:
  explicit BlockDisk(std::shared_ptr<DiskState> state);
  std::shared_ptr<DiskState> state_;
};

}  // namespace cowd
