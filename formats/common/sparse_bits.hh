// SPDX-License-Identifier: GPL-2.0-or-later
// Bits of a very long row of which few are set, as of a sparse file's blocks: memory goes with
// what is set, about 100 bytes for 512 neighbours, and not with how long the row is.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>

namespace cowd {

class SparseBits {
 public:
  // Whether it was set before.
  bool set(uint64_t at) {
    uint64_t& word = chunks_[at / kChunk][at % kChunk / 64];
    const uint64_t bit = uint64_t{1} << at % 64;
    const bool before = word & bit;
    word |= bit;
    return before;
  }
  bool get(uint64_t at) const {
    const auto found = chunks_.find(at / kChunk);
    return found != chunks_.end() && found->second[at % kChunk / 64] >> at % 64 & 1;
  }

 private:
  static constexpr uint64_t kChunk = 512;
  std::unordered_map<uint64_t, std::array<uint64_t, kChunk / 64>> chunks_;
};

}  // namespace cowd
