// SPDX-License-Identifier: GPL-2.0-or-later
// A file as a block device, through a loop device with direct I/O and autoclear: it
// goes away by itself when its last user (we, or the dm device on top) has closed it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace cowd {

class LoopDevice {
 public:
  enum class Use {
    base,      // read-only; an existing read-only loop device of the same file is shared
    top,       // writable; refused with EBUSY while any loop device of the same file is there
    reattach,  // the writable one that a dm device of an earlier cowd keeps; ENOENT without
  };
  // Blocks on the file system of `file`: call it off the strands. Throws Error.
  // `shown`: what to call it, where that is not the path to open; then the caller knows that
  // a last piece of a sector is hidden, otherwise a file with one is refused.
  static std::shared_ptr<LoopDevice> attach(const std::string& file, Use use,
                                            const std::string& shown = {});
  ~LoopDevice();

  const std::string& path() const { return path_; }  // /dev/loop3
  const std::string& file() const { return file_; }
  bool shared() const { return shared_; }  // found, not made
  // False where the file system has no direct I/O: slower, and counted twice in memory.
  bool direct() const { return direct_; }

  // The loop device that has this file, or "".
  static std::string find(const std::string& file);

  struct File {
    dev_t device = 0;  // its file system's
    ino_t inode = 0;
  };
  // What a loop device is all of; nothing: it is none, or has only a part of one.
  static std::optional<File> file_of(dev_t loop);

 private:
  LoopDevice(int fd, std::string path, std::string file);
  int fd_;
  std::string path_;
  std::string file_;
  bool shared_ = false;
  bool direct_ = false;
};

}  // namespace cowd
