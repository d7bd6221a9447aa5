// SPDX-License-Identifier: GPL-2.0-or-later
// A guest that does what an input says, over the model of the kernel, and remembers what it must
// read: of disks of any size, for it remembers only what it has touched.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "tests/fuzz/input.hh"
#include "tests/sim/kernel_model.hh"

namespace cowd::fuzz {

class Guest {
 public:
  // `unit`: sectors of a block of the device; `sectors`: of the disk.
  Guest(uint64_t sectors, uint64_t unit) : sectors_(sectors / unit * unit), unit_(unit) {}

  // Whether it is cowd being killed and begun again.
  static bool is_restart(const Operation& operation) {
    return operation.code % kCodes == kReattach;
  }
  // What is there where the operations will be. Nothing is written.
  Task<> look(sim::KernelModel& kernel, std::span<const Operation> operations);
  // All of them. An Error of one is its own; false: the image is gone.
  Task<bool> play(sim::KernelModel& kernel, std::span<const Operation> operations);
  // Fails where the disk has something else than it must have.
  Task<> verify(sim::KernelModel& kernel) const;
  // The host died: what no flush has covered may be anything.
  void forget_unflushed();
  // Of an image with errors (a refcount that says of a cluster in use that it is free) a write may
  // change what is elsewhere; nothing is expected of it.
  void expect_nothing() { damaged_ = true; }

 private:
  enum Code { kRead, kFlush = 2, kTimer, kDiscard, kZero, kForget, kReattach, kWrite, kCodes = 14 };
  struct Known {
    uint64_t sum = 0;
    bool flushed = true;
  };
  Range range_of(const Operation& operation) const;
  Task<> play_one(sim::KernelModel& kernel, Code code, Range range);
  Task<> write(sim::KernelModel& kernel, Range range);
  void forget(Range range);
  void learn(Range range, std::span<const std::byte> bytes, bool flushed);
  void compare(Range range, std::span<const std::byte> bytes) const;

  uint64_t sectors_;
  uint64_t unit_;
  std::map<uint64_t, Known> known_;  // by sector
  uint64_t next_ = 1;
  bool damaged_ = false;
};

}  // namespace cowd::fuzz
