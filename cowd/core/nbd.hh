// SPDX-License-Identifier: GPL-2.0-or-later
// NBD exports as block devices, through the kernel's nbd driver. cowd-nbd connects a
// device and keeps it connected; it lives in a unit of its own and outlives us.
//
// Which device has which export is written in the kernel: /sys/block/nbdN/backend says
// "cowd nbd://..." for those that we connected, so that all disks on one export share a device and
// a restarted cowd finds it. The kernel disconnects a device at its last close, as with loop
// devices; those that say something else there are somebody else's and are not touched.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cowd/core/spec.hh"

namespace cowd {

struct BackingSettings;  // backing.hh
struct DiskOptions;      // disk_options.hh

class NbdDevice {
 public:
  // Finds the device that has this export, or has one connected. Blocks for up to 30 s: off the
  // strands. Throws Error.
  static std::shared_ptr<NbdDevice> attach(const Component& component,
                                           const BackingSettings& settings,
                                           const DiskOptions& options);
  // Only finds it.
  static std::shared_ptr<NbdDevice> find(const Component& component);
  // The export, as find() was given it, that a device of ours has; empty: it is none.
  static std::string export_of(dev_t device);
  // Those that we connected, whatever they have: "nbd0".
  static std::vector<std::string> own_devices();
  ~NbdDevice();
  NbdDevice(const NbdDevice&) = delete;
  NbdDevice& operator=(const NbdDevice&) = delete;

  const std::string& path() const { return path_; }  // /dev/nbd3

 private:
  NbdDevice(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_;
  std::string path_;
};

}  // namespace cowd
