// SPDX-License-Identifier: GPL-2.0-or-later
// Who uses which backing: a store that is written has one user, a base that is only
// read has any number.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <tuple>

#include "cowd/core/spec.hh"

namespace cowd {

// What a path resolves to, however it is spelt: the device behind a block special
// file, else file system and inode. Of a loop device it is its file.
struct StoreIdentity {
  bool block = false;
  uint64_t device = 0;  // st_rdev, or st_dev of a file
  uint64_t inode = 0;   // 0 for a block device
  // Instead of all that, of an NBD export its URI and of an iSCSI unit target and number, by
  // whatever portal or as whatever block device it is named.
  std::string remote;
  auto operator<=>(const StoreIdentity&) const = default;
};

// May block with the file system. Throws Error.
StoreIdentity identify_store(const Component& component);
// The same of a block device that somebody has opened, by its number.
StoreIdentity identify_device(dev_t device);

// One thread or strand.
class Stores {
 public:
  // Throws Error(EBUSY) that names the device which stands in the way. `path` is for
  // sentences. All or nothing over several claims: release() undoes them.
  void claim(const std::string& device, const StoreIdentity& store, bool writable,
             const std::string& path);
  void release(const std::string& device);

  // The device of ours that somebody else who reads or writes the store gets in the way
  // of; empty: none.
  std::string hindered(const StoreIdentity& store, bool writes) const;

 private:
  struct Use {
    std::string writer;  // empty: none
    std::set<std::string> readers;
  };
  std::map<StoreIdentity, Use> uses_;
};

}  // namespace cowd
