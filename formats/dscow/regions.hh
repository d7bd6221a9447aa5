// SPDX-License-Identifier: GPL-2.0-or-later
// How the disk is cut into extents.
//
//   [0, base_end)        overlay over the base        whole granules of the base
//   edge                 plain, in the store          the granule in which the base ends
//   [.., whole)          overlay over zeroes          whole granules beyond the base
//   edge                 plain, in the store          the last granule, if it is a part only
//
// The kernel's overlays have one read side and whole granules. So a granule that
// is half base and half nothing, or half beyond the end of the disk, is an *edge*: it is in
// the store from create on, filled with what the base has of it and zeroes, and
// its bit is not used. There are two edges at most, none as a rule.
#pragma once

#include <cstdint>
#include <vector>

#include "formats/dscow/header.hh"
#include "formats/plugin.hh"

namespace cowd::dscow {

struct Region {
  enum class Kind { over_base, over_zero, edge } kind;
  uint64_t first = 0;  // granule
  uint64_t count = 0;  // granules
  bool contains(uint64_t granule) const { return granule >= first && granule - first < count; }
};

// In order, without gaps, together all granules of the disk.
std::vector<Region> regions_of(const Geometry& geometry, uint64_t base_size);

// Writes the edges into the store; not flushed. base may be null if there is none.
Task<> fill_edges(Disk& store, Disk* base, const Geometry& geometry, uint64_t base_size);

}  // namespace cowd::dscow
