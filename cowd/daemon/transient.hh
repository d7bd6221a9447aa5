// SPDX-License-Identifier: GPL-2.0-or-later
// Stores that cowd makes itself: transient@VG, transient@DIRECTORY.
//
// A store is never known by its name. In a volume group it is an LV with a random
// name and the tags
//   cowd.transient  cowd.store=<uuid>  cowd.host=<machine id>  cowd.boot=<boot id>
//   cowd.vm=<uuid>  cowd.vdev=<vdev>   cowd.saved   cowd.new
// in a directory a file <uuid>.store, and beside it a note <uuid>.json that says the same
// and has the file's inode.
//
// Orderings, so that a crash between any two lines leaves nothing that scan() does not find:
//   LV    1. lvcreate with all its tags and cowd.new: one commit of LVM's metadata
//         2. its first MiB zeroed, so that no header of an earlier store is taken for its own
//         3. cowd.new is taken away: from here on its header counts
//   file  1. the note, inode 0; it and the directory synced
//         2. the file, O_EXCL; it and the directory synced
//         3. the note again, with the inode
//   removal of a file: the file, then the note, the directory synced after each
//
// What stands in the way of a removal: another host's tags or note, none at all, a
// header of somebody else (an unformatted store of zeroes is nobody's), an open device or file,
// the mark of a saved domain's store.
// dscow's header has the owner's machine id and, if it was created with -o uuid=, the store's uuid:
// both must be those of the tags as far as they are there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cowd/daemon/lvm.hh"

namespace cowd {

struct StoreBinding {
  std::string vm_uuid;  // empty: attached by cowctl
  std::string vdev;
  bool operator==(const StoreBinding&) const = default;
};

struct TransientStore {
  std::string uuid;
  std::string where;    // the volume group's name, or the directory
  std::string path;     // of the device or the file
  std::string lv_uuid;  // empty: a file
  std::string host_id;  // whose it is; empty: nobody says so
  std::string boot_id;
  StoreBinding binding;
  bool saved = false;
  uint64_t bytes = 0;
  std::string created_at;  // RFC 3339
  // Why remove() will not have it (of another host's nothing is looked at): a sentence. Empty: it
  // would.
  std::string problem;
};

// What the first 8 KiB of a store say against its being `store`: half a sentence; empty if
// nothing. Zeroes: never formatted.
std::string header_disagrees(const TransientStore& store, std::span<const std::byte> head);

// Error(EINVAL) for a directory that is none of `known`, in which cowd would not look for what it
// has made there. A volume group is always looked at.
void require_store_directory(const std::string& where, const std::vector<std::string>& known);

// Blocking calls, off the strands; thread safe. All throw Error.
class TransientStores {
 public:
  TransientStores(std::string host_id, std::string boot_id);

  // At least `bytes`, in the volume group or directory `where`; its first MiB reads as
  // zeroes. The format is made by the caller, with the option uuid=<uuid of the store>.
  // ENOSPC, ENOENT (no such group or directory), EPERM (others may write to the directory).
  TransientStore create(const std::string& where, uint64_t bytes, const StoreBinding& binding);

  // Durable when it returns.
  void mark_saved(const TransientStore& store, bool saved);

  // What is marked as saved goes only if that is said. EPERM: another host's, or its saved domain
  // may come for it, whose end then is its end; EUCLEAN: tags and header disagree; EBUSY: somebody
  // has it open; ENOENT: there is none (any more).
  enum class Saved { stays, goes };
  void remove(const TransientStore& store, Saved saved = Saved::stays);

  // Those of all volume groups and of these directories, other hosts' too. What cannot be looked
  // at is left out; complaints, where given, gets a sentence for each.
  std::vector<TransientStore> scan(const std::vector<std::string>& directories,
                                   std::vector<std::string>* complaints = nullptr);

  // This host's saved store of that disk; its device is active.
  std::optional<TransientStore> find_saved(const std::string& where, const StoreBinding& binding);

 private:
  std::vector<TransientStore> volumes(const std::string& selection, std::string* complaints);
  static std::string look_at(const TransientStore& store, bool active);
  void require_ours(const TransientStore& wanted, const std::optional<TransientStore>& now) const;

  TransientStore create_volume(const TransientStore& wanted);
  void drop_new_volume(const std::string& uuid) noexcept;
  lvm::Volume our_volume(const TransientStore& wanted) const;
  void remove_volume(const lvm::Volume& volume, Saved saved) const;

  const std::string host_id_;
  const std::string boot_id_;
  std::mutex files_mutex_;  // scan() clears up the temporary notes of this host
};

}  // namespace cowd
