// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/dscow/uncommitted.hh"

#include <algorithm>
#include <iterator>

#include "formats/dscow/bits.hh"

namespace cowd::dscow {

void Uncommitted::add(uint64_t first, uint64_t count, uint64_t seq) {
  while (count != 0) {
    const auto offset = static_cast<uint32_t>(first % kPageGranules);
    const auto part = static_cast<uint32_t>(std::min<uint64_t>(count, kPageGranules - offset));
    std::vector<Run>& runs = waiting_[first / kPageGranules];
    if (!runs.empty() && runs.back().seq == seq && runs.back().first + runs.back().count == offset)
      runs.back().count += part;
    else
      runs.push_back({offset, part, seq});
    first += part;
    count -= part;
  }
}

bool Uncommitted::freeze(uint64_t seq) {
  for (auto at = waiting_.begin(); at != waiting_.end();) {
    std::vector<Run>& runs = at->second;
    const auto newer = std::stable_partition(runs.begin(), runs.end(),
                                             [seq](const Run& run) { return run.seq <= seq; });
    if (newer != runs.begin()) frozen_[at->first].assign(runs.begin(), newer);
    runs.erase(runs.begin(), newer);
    at = runs.empty() ? waiting_.erase(at) : std::next(at);
  }
  return !frozen_.empty();
}

void Uncommitted::thaw() {
  for (auto& [page, runs] : frozen_) {
    std::vector<Run>& waiting = waiting_[page];
    waiting.insert(waiting.begin(), runs.begin(), runs.end());
  }
  frozen_.clear();
}

void Uncommitted::or_into(uint64_t page, std::span<std::byte> bits) const {
  for (const Pages* pages : {&waiting_, &frozen_}) {
    const auto found = pages->find(page);
    if (found == pages->end()) continue;
    for (const Run& run : found->second) set_bits(bits, run.first, run.count);
  }
}

uint64_t Uncommitted::granules() const {
  uint64_t sum = 0;
  for (const Pages* pages : {&waiting_, &frozen_})
    for (const auto& [page, runs] : *pages)
      for (const Run& run : runs) sum += run.count;
  return sum;
}

}  // namespace cowd::dscow
