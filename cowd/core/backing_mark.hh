// SPDX-License-Identifier: GPL-2.0-or-later
// What tells udev that a block device is a backing of ours before the kernel announces it: the
// rule 56-dm-userspace.rules keeps blkid and LVM off such a device, and once may be too often.
//
// The mark of loop3 is the file /run/cowd/backings.d/loop3. It says
//   new      its maker, who holds a lock on the file, is about to set the device up: all that is
//            said of it is said of ours
//   NUMBER   the loop device is ours as long as /sys/block/loop3/diskseq is this, which the
//            kernel changes whenever one is set up or ends: so nobody has to take the mark away
// An nbd device has a mark while it is being connected, and after that its name in sysfs (nbd.hh).
#pragma once

#include <string>
#include <vector>

#include "cowd/core/fd.hh"

namespace cowd {

class BackingMark {
 public:
  // Waits while another of us is about to set up that device ("loop3"). Throws Error.
  explicit BackingMark(std::string device);
  // Takes the mark away, unless it is to stay or there is none.
  ~BackingMark();
  BackingMark(const BackingMark&) = delete;
  BackingMark& operator=(const BackingMark&) = delete;

  // Only if the device is free: the mark of one that is not is somebody else's.
  void set();
  // The loop device is set up: the mark stays, for this one.
  void keep();

  // The loop devices that are ours: "loop3".
  static std::vector<std::string> loops();
  // Removes marks of devices that have ended, and of who was killed: they harm nobody, but need
  // not stay. Throws nothing.
  static void clean() noexcept;

 private:
  void write(const std::string& content);

  std::string device_;
  Fd lock_;
  bool set_ = false;
};

}  // namespace cowd
