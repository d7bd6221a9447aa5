// SPDX-License-Identifier: GPL-2.0-or-later
// Destinations for tests: RAM disks without and with a write cache, and dm devices
// over them that can be held, fail, or run out of space.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/kernel/case.hh"

namespace dmutest {

// A block device that a case may use as a destination.
class Disk {
 public:
  virtual ~Disk() = default;
  const std::string& path() const { return path_; }
  uint64_t sectors() const;
  // Field n (from 1, as Documentation/block/stat.rst counts) of the device's stat.
  uint64_t stat(int field) const;
  // A file of its queue/ folder in sysfs.
  std::string queue(const std::string& file) const;

 protected:
  std::string sys() const;
  std::string path_;
};

constexpr int kStatReads = 1, kStatWrites = 5, kStatInFlight = 9, kStatFlushes = 16;

// A device that something else made.
class Path : public Disk {
 public:
  explicit Path(const std::string& path) { path_ = path; }
};

// One of 16 RAM disks (brd) of 32 MiB without a write cache. Nobody else has it
// while it lives. What an earlier case wrote is still there.
class Ram : public Disk {
 public:
  Ram();
  ~Ram() override;
  static constexpr uint64_t kSectors = 65536;

 private:
  bool claim();
  int fd_ = -1;
};

// A RAM disk (null_blk) with a write cache and discard, where sectors can be made bad.
class Null : public Disk {
 public:
  explicit Null(uint64_t mib = 32);
  ~Null() override;
  void make_bad(uint64_t first, uint64_t last);

 private:
  std::string config_;
};

// A loop device over a file in memory, of 32 MiB. It takes discards and WRITE_ZEROES:
// dm offers those only where every destination does.
class Loop : public Disk {
 public:
  Loop();
  ~Loop() override;

 private:
  std::string file_;
};

// A disk of scsi_debug, a module that is loaded with `options` for it: one at a time.
class Scsi : public Disk {
 public:
  explicit Scsi(const std::vector<std::string>& options);
  ~Scsi() override;
  // From here on each command takes this long. None may be under way.
  void slow(Ms each);
  // Pulls it out, whoever uses it.
  void pull();

 private:
  std::string device_;  // in sysfs
};

// A dm device with a table of dmsetup's syntax (lines end with '\n').
class Dm : public Disk {
 public:
  Dm(const std::string& what, const std::string& table);
  ~Dm() override;
  // From here on I/O waits in it; it ends on release().
  void hold();
  void release();
  void reload(const std::string& table);
  void message(const std::string& text);
  const std::string& name() const { return name_; }

 private:
  std::string name_;
};

// Table lines.
std::string linear(uint64_t start, uint64_t len, const Disk& on, uint64_t at);
std::string error(uint64_t start, uint64_t len);

// The whole of `on` through dm-linear.
std::unique_ptr<Dm> linear_over(const Disk& on);

// `on` through dm-linear, where the run [start, start + len) goes through another
// device, so that only this run is held by held().
class PartlyHeld {
 public:
  PartlyHeld(const Disk& on, uint64_t start, uint64_t len);
  Disk& disk() { return *whole_; }
  Dm& held() { return *part_; }

 private:
  std::unique_ptr<Dm> part_, whole_;
};

// dm-thin over RAM disks: `room` sectors of data for a thin disk of 64 MiB. When
// they are used up, writes end in ENOSPC until grow().
class Thin {
 public:
  explicit Thin(uint64_t room);
  ~Thin();
  Disk& disk() { return *thin_; }
  void grow(uint64_t room);

 private:
  std::string pool_table(uint64_t room) const;
  Ram meta_, data_;
  std::unique_ptr<Dm> pool_, thin_;
};

}  // namespace dmutest
