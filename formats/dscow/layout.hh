// SPDX-License-Identifier: GPL-2.0-or-later
// Where things lie in a dscow store. docs/dscow.md is the specification.
#pragma once

#include <cstdint>
#include <string>

namespace cowd::dscow {

inline constexpr uint32_t kBlock = 4096;          // bytes; metadata is laid out in these
inline constexpr uint32_t kPageGranules = 32768;  // bits in one page
inline constexpr uint32_t kMinGranule = 4096;     // bytes
inline constexpr uint32_t kMaxGranule = 1U << 20;
inline constexpr uint64_t kDataAlign = 1U << 20;      // bytes
inline constexpr uint64_t kMaxGranules = 1ULL << 40;  // the top is then 4 MiB

// All in bytes, but for the counts.
struct Geometry {
  uint64_t size = 0;  // of the virtual disk, a multiple of 512
  uint32_t granule = kMinGranule;
  uint64_t top_offset = 0;
  uint64_t pages_offset = 0;
  uint64_t data_offset = 0;

  uint64_t granules() const { return (size + granule - 1) / granule; }
  uint64_t pages() const { return (granules() + kPageGranules - 1) / kPageGranules; }
  uint64_t top_bytes() const;
  uint64_t page_offset(uint64_t page) const { return pages_offset + page * kBlock; }
  uint64_t granule_offset(uint64_t granule_no) const { return data_offset + granule_no * granule; }
  // What the store must have at least.
  uint64_t needed() const { return data_offset + granules() * granule; }
  // Granules of a page that are part of the disk.
  uint32_t granules_in(uint64_t page) const;
  bool operator==(const Geometry&) const = default;
};

// The layout that create makes.
Geometry plan(uint64_t size, uint32_t granule);

// What is wrong with a geometry read from a disk, or with the size and granule
// that somebody asked for: half a sentence; empty if nothing is.
std::string problem_with(const Geometry& geometry);

}  // namespace cowd::dscow
