// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/dscow/regions.hh"

#include <algorithm>
#include <span>

#include "formats/common/bytes.hh"

namespace cowd::dscow {

std::vector<Region> regions_of(const Geometry& geometry, uint64_t base_size) {
  using Kind = Region::Kind;
  const uint64_t whole = geometry.size / geometry.granule;
  const uint64_t base_whole = std::min(base_size, geometry.size) / geometry.granule;
  const bool base_edge = base_size < geometry.size && base_size % geometry.granule != 0;
  const uint64_t zero_first = base_whole + (base_edge ? 1 : 0);
  std::vector<Region> regions;
  if (base_whole > 0) regions.push_back({Kind::over_base, 0, base_whole});
  if (base_edge) regions.push_back({Kind::edge, base_whole, 1});
  if (zero_first < whole) regions.push_back({Kind::over_zero, zero_first, whole - zero_first});
  if (std::max(zero_first, whole) < geometry.granules()) regions.push_back({Kind::edge, whole, 1});
  return regions;
}

Task<> fill_edges(Disk& store, Disk* base, const Geometry& geometry, uint64_t base_size) {
  for (const Region& region : regions_of(geometry, base_size)) {
    if (region.kind != Region::Kind::edge) continue;
    const uint64_t offset = region.first * geometry.granule;
    Buffer granule(geometry.granule);
    if (offset < base_size) {
      const uint64_t wanted = std::min<uint64_t>(geometry.granule, base_size - offset);
      const uint64_t read = std::min(round_up(wanted, base->block_size()), base->size() - offset);
      co_await base->read_at(offset, std::span<std::byte>(granule).first(read));
      std::fill(granule.begin() + static_cast<ptrdiff_t>(wanted), granule.end(), std::byte{0});
    }
    co_await store.write_at(geometry.granule_offset(region.first), granule);
  }
}

}  // namespace cowd::dscow
