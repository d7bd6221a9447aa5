// SPDX-License-Identifier: GPL-2.0-or-later
// The two copies of the header on a disk.
//
// Copy 0 is block 0 of the store, copy 1 is block 1. The valid one with the
// higher sequence number counts (equal, after create: copy 0). An update goes to
// the other copy, with the next number, and is flushed before it counts. So at
// any moment one valid copy is not being written; a torn update leaves it in force,
// and the next update overwrites the torn one.
#pragma once

#include <array>
#include <cstddef>

#include "formats/common/bytes.hh"
#include "formats/dscow/header.hh"
#include "formats/plugin.hh"

namespace cowd::dscow {

class Headers {
 public:
  // Throws if neither copy is valid, of this version and of known features.
  static Task<Headers> read(Disk& disk);

  const Header& current() const { return current_; }
  // What is wrong with a copy; empty if nothing is.
  const std::string& problem(size_t copy) const { return problems_[copy]; }
  size_t current_copy() const { return copy_; }

  // Makes `next` the current header, durably. Sets its sequence number. If it
  // throws, either header may be found on the disk, and the call may be repeated.
  Task<> write(Disk& disk, Header next);

 private:
  Header current_;
  Buffer block_;  // as it was read or written last
  size_t copy_ = 0;
  std::array<std::string, 2> problems_;
};

// What create does: both copies, from nothing. Flushed.
Task<> write_both(Disk& disk, Header header);

// Feature bits that a header has and this program does not know.
uint64_t unknown_incompatible(const Header& header);
uint64_t unknown_read_only(const Header& header);

}  // namespace cowd::dscow
