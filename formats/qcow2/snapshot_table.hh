// SPDX-License-Identifier: GPL-2.0-or-later
// The snapshot table. Source: docs/interop/qcow2.txt of QEMU, "Snapshots".
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "formats/plugin.hh"
#include "formats/qcow2/layout.hh"

namespace cowd::qcow2 {

// Those of the specification's reference implementation, so that it can read what is written.
inline constexpr uint64_t kMaxSnapshotTableBytes = 64 << 20;
inline constexpr uint32_t kMaxSnapshotExtra = 1024;
inline constexpr size_t kMaxSnapshotName = 255;

struct SnapshotEntry {
  Snapshot what;
  uint64_t l1_offset = 0;
  uint32_t l1_entries = 0;
  bool has_size = true;            // else the entry does not say how large the disk was
  std::vector<std::byte> unknown;  // extra data behind what is known
};

struct SnapshotTable {
  std::vector<SnapshotEntry> entries;
  uint64_t bytes = 0;  // that it has on disk
};

// Throws EIO for what cannot be.
Task<SnapshotTable> read_snapshots(Disk& disk, const Header& header);
// Throws E2BIG, with `name` of the image, for more than there may be.
std::vector<std::byte> encode(std::span<const SnapshotEntry> entries, const std::string& name);
// The L1 table of a snapshot. Throws EIO where it cannot be.
Task<std::vector<uint64_t>> read_l1_of(Disk& disk, const Header& header,
                                       const SnapshotEntry& entry);

}  // namespace cowd::qcow2
