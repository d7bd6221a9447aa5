// SPDX-License-Identifier: GPL-2.0-or-later
// /run/cowd: the lock that keeps a second cowd out, and the list of what is attached.
#pragma once

#include <string>
#include <vector>

#include "cowd/daemon/device_entry.hh"

namespace cowd {

class RunDir {
 public:
  // Makes the directory where it is missing and takes the lock, which goes with the
  // process. Throws Error: EBUSY (another cowd), or that of the file system.
  explicit RunDir(std::string path);
  ~RunDir();
  RunDir(const RunDir&) = delete;
  RunDir& operator=(const RunDir&) = delete;

  const std::string& path() const { return path_; }

  // Replaces the device's entry as a whole or leaves the old one. Throws Error.
  void write(const DeviceEntry& entry) const;
  void remove(const std::string& name) const noexcept;

  struct Listing {
    std::vector<DeviceEntry> entries;
    std::vector<std::string> complaints;  // a sentence for each file that is no entry
  };
  Listing list() const;

 private:
  std::string entry_path(const std::string& name) const;

  std::string path_;
  int lock_ = -1;
};

}  // namespace cowd
