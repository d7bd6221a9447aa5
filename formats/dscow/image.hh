// SPDX-License-Identifier: GPL-2.0-or-later
// An open dscow store.
//
// The kernel is given the whole disk at once, as one overlay extent over the base
// (and others where the base or the disk ends within a granule, or the base is
// shorter: regions.hh). After that it asks for a leaf of the bitmap when it first
// needs it, and for nothing else. A store that may only be read has no write side
// that the kernel would accept; there every fault is answered with plain extents
// made from the bitmap.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "formats/dscow/bitmap.hh"
#include "formats/dscow/headers.hh"
#include "formats/dscow/regions.hh"
#include "formats/plugin.hh"

namespace cowd::dscow {

class StoreImage : public Image {
 public:
  // Header, bitmap and owner have been seen to. read_only: the store is not ours.
  StoreImage(OpenRequest request, Headers headers, std::unique_ptr<Bits> bits, bool read_only);

  uint64_t sectors() const override { return geometry_.size / 512; }
  std::vector<Destination> destinations() const override;
  uint32_t discard_granularity() const override { return geometry_.granule; }
  std::vector<Answer> initial() const override;
  Task<std::vector<Answer>> resolve(Range range, Access access) override;
  void promoted(const Promotion& promotion) override;
  Task<> commit(uint64_t seq, bool data_flushed) override;
  Task<std::vector<Answer>> discard(Range range) override;
  Task<std::vector<Answer>> zero(Range range) override;
  Task<std::vector<MapEntry>> map(Range range) override;
  Task<> preserve() override;
  Task<> close() override;
  nlohmann::json stats() const override;

 private:
  enum class Where { store, base, zero };
  // Granules [first, end), all in one place.
  struct Run {
    Where where;
    uint64_t first;
    uint64_t end;
  };

  uint64_t granule_sectors() const { return geometry_.granule / 512; }
  // Up to the end of the disk.
  Range sectors_of(uint64_t first, uint64_t end) const;
  Side side_of(Where where, uint64_t granule) const;
  const Region& region_at(uint64_t granule) const;
  Extent extent_of(const Region& region) const;
  MapEntry entry_of(const Run& run, Range within) const;
  void require_within(Range range) const;
  // The longest run at `first` that ends at `limit` or before.
  Task<Run> run_at(uint64_t first, uint64_t limit);
  std::vector<Answer> regions_in(Range range) const;
  Task<std::vector<Answer>> read_only_extents(Range range);
  Task<std::vector<Answer>> leaf(Range range);

  const OpenRequest request_;
  Headers headers_;
  const Geometry geometry_;
  const std::vector<Region> regions_;
  std::unique_ptr<Bits> bits_;
  const bool read_only_;
  std::string misled_;  // what the kernel told that cannot be; then nothing is committed
};

}  // namespace cowd::dscow
