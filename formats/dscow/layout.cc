// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/dscow/layout.hh"

#include <algorithm>
#include <bit>

#include "formats/common/bytes.hh"

namespace cowd::dscow {

uint64_t Geometry::top_bytes() const { return round_up((pages() + 7) / 8, kBlock); }

uint32_t Geometry::granules_in(uint64_t page) const {
  return static_cast<uint32_t>(
      std::min<uint64_t>(kPageGranules, granules() - page * kPageGranules));
}

Geometry plan(uint64_t size, uint32_t granule) {
  Geometry geometry{size, granule, 2 * kBlock, 0, 0};
  geometry.pages_offset = geometry.top_offset + geometry.top_bytes();
  geometry.data_offset = round_up(geometry.page_offset(geometry.pages()), kDataAlign);
  return geometry;
}

std::string problem_with(const Geometry& geometry) {
  const Geometry& g = geometry;
  if (!std::has_single_bit(g.granule) || g.granule < kMinGranule || g.granule > kMaxGranule)
    return "the granule is not a power of two from 4 KiB to 1 MiB";
  if (g.size == 0 || g.size % 512 != 0)
    return "the size of the disk is not a multiple of 512 bytes";
  if (g.size / g.granule >= kMaxGranules)
    return "the disk has more than 2^40 granules (a larger granule makes them fewer)";
  // With the limits above nothing below can overflow.
  if (g.top_offset % kBlock != 0 || g.pages_offset % kBlock != 0 || g.data_offset % kDataAlign != 0)
    return "an area is not aligned";
  if (g.data_offset > 1ULL << 62 || g.pages_offset > g.data_offset ||
      g.top_offset > g.pages_offset || g.top_offset < 2 * kBlock ||
      g.pages_offset - g.top_offset < g.top_bytes() ||
      g.data_offset - g.pages_offset < g.pages() * kBlock)
    return "areas overlap";
  return {};
}

}  // namespace cowd::dscow
