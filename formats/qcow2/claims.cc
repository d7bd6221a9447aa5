// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/qcow2/claims.hh"

#include <algorithm>
#include <iterator>

namespace cowd::qcow2 {

void Claims::add(uint64_t first, uint64_t count) {
  if (count == 0) return;
  uint64_t end = first + count;
  auto at = intervals_.upper_bound(first);
  if (at != intervals_.begin() && std::prev(at)->second >= first) {
    --at;
    first = at->first;
  }
  while (at != intervals_.end() && at->first <= end) {
    end = std::max(end, at->second);
    at = intervals_.erase(at);
  }
  intervals_[first] = end;
}

void Claims::remove(uint64_t first, uint64_t count) {
  const uint64_t end = first + count;
  auto at = intervals_.upper_bound(first);
  if (at != intervals_.begin()) --at;
  while (at != intervals_.end() && at->first < end) {
    const uint64_t from = at->first, to = at->second;
    if (to <= first) {
      ++at;
      continue;
    }
    at = intervals_.erase(at);
    if (from < first) intervals_[from] = first;
    if (to > end) intervals_[end] = to;
  }
}

uint64_t Claims::end_of(uint64_t cluster) const {
  const auto at = intervals_.upper_bound(cluster);
  if (at == intervals_.begin() || std::prev(at)->second <= cluster) return cluster;
  return std::prev(at)->second;
}

uint64_t Claims::next(uint64_t cluster) const {
  if (has(cluster)) return cluster;
  const auto at = intervals_.upper_bound(cluster);
  return at == intervals_.end() ? UINT64_MAX : at->first;
}

uint64_t Claims::count() const {
  uint64_t sum = 0;
  for (const auto& [first, end] : intervals_) sum += end - first;
  return sum;
}

}  // namespace cowd::qcow2
