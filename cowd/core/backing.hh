// SPDX-License-Identifier: GPL-2.0-or-later
// From a component of a disk specification to something that can be a destination.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cowd/core/disk.hh"
#include "cowd/core/spec.hh"

namespace cowd {

struct Backing {
  std::shared_ptr<BlockDisk> disk;
  std::string device;  // the block device for the dm table, /dev/...
  dev_t dev = 0;
  // Keep it for as long as the device may be opened anew (a loop device).
  std::shared_ptr<void> keepalive;
};

// What a program says once, before it opens the first one.
struct BackingSettings {
  std::string run_dir = "/run/cowd";
  std::string disks_dir = kDisksDir;  // its files may say more of an export or target
  // For how long requests wait for a server that is lost before they fail; none: for ever.
  std::optional<uint64_t> loss_seconds;
  // A disconnection does not keep anybody waiting: for a daemon, which does not end soon.
  bool background = false;
};
void set_backing_settings(const BackingSettings& settings);

// Closes what an earlier cowd opened and nothing uses any more. May block; throws nothing.
void release_unused_backings();

// The block devices that we have made of files, exports and units: "loop3", "nbd0", "sdc". Their
// servers may hang, and what is on them is no business of this host's.
std::vector<std::string> own_backings();

enum class BackingUse {
  base,      // read-only, may be shared
  image,     // the same, of a format with tables: a last piece of a sector is read, too
  top,       // writable, nobody else may have it
  look,      // read-only, for tools (info, map, check): a file is opened without a loop device
  change,    // writable, nobody else may have it, for tools (create, repair); a file as with look
  reattach,  // writable, already claimed by the dm device that an earlier cowd made
};

// May block for as long as the backing hangs: call it off the strands (blocking.hh).
// Throws Error: ENOENT, EBUSY, ENOTBLK (a directory, a socket...), EOPNOTSUPP (transient:
// who makes the store opens it by its path), those of the network, each with its sentence.
Backing open_backing(std::shared_ptr<AsyncIo> io, const Component& component, BackingUse use);

// Whether something holds it: a claim of the kernel on a block device (a mount, dm), a
// loop device of a file. False for what cannot be looked at.
bool backing_in_use(const Component& component);

// The block device size, or the file's, of a path; bytes.
uint64_t backing_size(const std::string& path);

// Whether `a` and `b` are the same device or file. Paths that cannot be looked up differ.
bool same_backing(const Component& a, const Component& b);

}  // namespace cowd
