// SPDX-License-Identifier: GPL-2.0-or-later
// Where the room for a store comes from, if it can run out before the store is as large as
// it says: the file system of a file that has holes, the thin pool of a thin volume. A plain
// volume, or a disk, has its room.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cowd/core/spec.hh"

namespace cowd {

struct SpaceId {
  enum class Kind { filesystem, thin_pool };
  Kind kind = Kind::filesystem;
  std::string id;  // a file system's MAJOR:MINOR (st_dev), a pool's lv_uuid
  auto operator<=>(const SpaceId&) const = default;
};

// That a store, or what it lies on, gets its room there.
struct StoreSpace {
  SpaceId space;
  std::string file;  // the one that takes it; empty for a pool
};

// A device, for whoever watches over its room.
struct SpaceUser {
  std::string device;
  std::vector<StoreSpace> spaces;
  bool waiting = false;  // writes wait for room
};

// How full one of them is.
struct SpaceFigures {
  std::string name;                        // the mount point, or VG/LV
  uint64_t size = 0;                       // bytes
  uint64_t used = 0;                       // bytes
  double percent = 0;                      // of the size, as df and lvs say it
  std::optional<double> metadata_percent;  // of a pool
  uint64_t growth = 0;  // of a file system: bytes that the stores there may still ask for
  // What decides: data or metadata.
  double fullest() const {
    return metadata_percent && *metadata_percent > percent ? *metadata_percent : percent;
  }
};

// All that the room of `top` comes from: a file's file system and what that lies on, a
// volume's thin pool. May block with the file system; what cannot be looked up counts as safe.
std::vector<StoreSpace> spaces_beneath(const Component& top);

// The thin pools of lvm2's beneath a block device. `sysfs`: where it is mounted.
std::vector<SpaceId> pools_beneath(dev_t device, const std::string& sysfs = "/sys");

// One file system through the files that are on it. Nothing: none of them has holes, or is
// there any more. May block with it. Throws Error.
std::optional<SpaceFigures> look_at_filesystem(const std::vector<std::string>& files);

}  // namespace cowd
