// SPDX-License-Identifier: GPL-2.0-or-later
// Transient stores in a directory; transient.hh has the orderings. One caller at a time.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cowd/core/error.hh"
#include "cowd/daemon/transient.hh"

namespace cowd::transient {

class Directory {
 public:
  // Error(EPERM) unless it is ours and nobody else may write to it.
  Directory(std::string path, std::string host_id);
  ~Directory();
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  // `store` says all but the path.
  TransientStore create(TransientStore store) const;
  void mark_saved(const TransientStore& store, bool saved) const;
  void remove(const TransientStore& store) const;
  // Also notes without a file and files without a note; removes the temporary
  // files that a crash of this host's cowd has left.
  std::vector<TransientStore> list() const;
  std::optional<TransientStore> find(const std::string& uuid) const;

 private:
  struct Note {
    TransientStore store;
    uint64_t inode = 0;  // 0: the file was not there yet
  };
  Note read_note(const std::string& uuid) const;
  void write_note(const Note& note) const;
  TransientStore orphan(const std::string& uuid) const;
  std::string why_not_ours(const Note& note, int fd) const;
  std::vector<std::string> names() const;
  void sync() const;
  Error failed(const std::string& what, const std::string& name) const;

  std::string path_;
  std::string host_id_;
  int fd_ = -1;
};

}  // namespace cowd::transient
