// SPDX-License-Identifier: GPL-2.0-or-later
// What is to be added to the refcounts of host clusters, or taken away from them. 4 bytes a
// cluster, where there is anything.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <set>
#include <unordered_map>

namespace cowd::qcow2 {

class Deltas {
 public:
  void add(uint64_t cluster, int32_t by) {
    auto& chunk = chunks_[cluster / kChunk];
    if (!chunk) chunk = std::make_unique<Chunk>();
    (*chunk)[cluster % kChunk] += by;
  }
  int32_t get(uint64_t cluster) const {
    const auto found = chunks_.find(cluster / kChunk);
    return found == chunks_.end() ? 0 : (*found->second)[cluster % kChunk];
  }
  // The refcount blocks in which something changes.
  std::set<uint64_t> blocks(uint64_t per_block) const {
    std::set<uint64_t> found;
    uint64_t last = UINT64_MAX;
    for (const auto& [chunk, values] : chunks_)
      for (uint64_t i = 0; i < kChunk; i++) {
        const uint64_t block = (chunk * kChunk + i) / per_block;
        if ((*values)[i] == 0 || block == last) continue;
        found.insert(block);
        last = block;
      }
    return found;
  }

 private:
  static constexpr uint64_t kChunk = 1024;
  using Chunk = std::array<int32_t, kChunk>;
  std::unordered_map<uint64_t, std::unique_ptr<Chunk>> chunks_;
};

}  // namespace cowd::qcow2
