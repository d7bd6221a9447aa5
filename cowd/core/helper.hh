// SPDX-License-Identifier: GPL-2.0-or-later
// Programs of ours that outlive us: each in a unit of its own where systemd runs, so that they
// are neither in cowd.service's sandbox nor stopped with it; else in a session of their own.
#pragma once

#include <string>
#include <vector>

namespace cowd {

// A file that is there while we wait for a helper. It writes to it why it failed ("ERRNO:
// sentence"), and learns from its removal that we need it no more. Locked while we live.
class HoldFile {
 public:
  explicit HoldFile(const std::string& run_dir);  // throws Error
  ~HoldFile();
  HoldFile(const HoldFile&) = delete;
  HoldFile& operator=(const HoldFile&) = delete;
  const std::string& path() const { return path_; }
  std::string content() const;

 private:
  void make(const std::string& run_dir);

  std::string path_;
  int fd_ = -1;
};

// Removes those of programs that were killed: their helpers learn it so.
void remove_left_hold_files(const std::string& run_dir) noexcept;

// Where a program of ours is: beside this one, or where make install puts it.
std::string helper_path(const std::string& name);

// Starts it, and waits until it has gone into the background. Throws the Error that it left in
// `hold`, its sentence after `purpose`.
void start_helper(const std::vector<std::string>& argv, const HoldFile& hold,
                  const std::string& purpose);

}  // namespace cowd
