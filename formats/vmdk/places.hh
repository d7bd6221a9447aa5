// SPDX-License-Identifier: GPL-2.0-or-later
// What lies where in a sparse extent, so that nothing is given or written over something else.
// Memory: 16 bytes a table, SparseBits of the grains, and 4 bytes for each grain that is not at a
// multiple of its length.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "formats/common/sparse_bits.hh"

namespace cowd::vmdk {

class Places {
 public:
  // In sectors.
  explicit Places(uint64_t grain) : grain_(grain) {}

  // Before any grain is. Nothing for no sectors.
  void add_table(uint64_t first, uint64_t sectors) {
    if (sectors != 0) tables_.emplace_back(first, first + sectors);
  }
  // When all tables are known: whether one lies on another.
  bool tables_overlap() {
    std::ranges::sort(tables_);
    uint64_t end = 0;
    bool overlap = false;
    for (auto& [first, own_end] : tables_) {
      overlap |= first < end;
      // So that find() need look at one only.
      end = own_end = std::max(end, own_end);
    }
    return overlap;
  }
  bool is_on_table(uint64_t first) const {
    const auto next = std::ranges::lower_bound(tables_, first + grain_, {},
                                               [](const auto& table) { return table.first; });
    return next != tables_.begin() && std::prev(next)->second > first;
  }
  // Whether another grain is there already, as far as that can be said before all are known.
  bool take(uint64_t first) {
    if (first % grain_ == 0) return taken_.set(first / grain_);
    // It reaches into two places. That others reach into them as well is no error by itself.
    odd_.push_back(static_cast<uint32_t>(first));
    return false;
  }
  // When all grains are known: how many more lie on another.
  uint64_t odd_overlaps() {
    std::ranges::sort(odd_);
    uint64_t overlaps = 0;
    for (size_t i = 0; i < odd_.size(); i++) {
      const uint64_t place = odd_[i] / grain_;
      overlaps +=
          taken_.get(place) || taken_.get(place + 1) || (i > 0 && odd_[i] - odd_[i - 1] < grain_);
    }
    return overlaps;
  }

 private:
  const uint64_t grain_;
  std::vector<std::pair<uint64_t, uint64_t>> tables_;  // from, to
  SparseBits taken_;                                   // by grain
  std::vector<uint32_t> odd_;
};

}  // namespace cowd::vmdk
