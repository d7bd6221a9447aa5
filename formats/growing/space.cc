// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/growing/space.hh"

#include <algorithm>
#include <iterator>

#include "formats/common/bytes.hh"

namespace cowd::growing {

void Space::add_hole(uint64_t first, uint64_t end) {
  if (first < end && holes_.size() < kMaxHoles) holes_.emplace(first, end);
}

std::optional<uint64_t> Space::take(uint64_t len, uint64_t align) {
  const uint64_t first = round_up(next_, align);
  if (first > limit_ || len > limit_ - first) return std::nullopt;
  next_ = first + len;
  return first;
}

std::optional<uint64_t> Space::take_in_hole(uint64_t len, uint64_t align, uint64_t& count) {
  while (!holes_.empty()) {
    const auto [begin, end] = *holes_.begin();
    holes_.erase(holes_.begin());
    const uint64_t first = round_up(begin, align);
    if (first >= end || end - first < len) continue;  // never of use
    count = std::min(count, (end - first) / len);
    add_hole(first + count * len, end);
    return first;
  }
  return std::nullopt;
}

void Space::give_back(uint64_t first, uint64_t end) {
  if (end == next_)
    next_ = first;
  else
    add_hole(first, end);
}

void Space::used(uint64_t first, uint64_t end) {
  auto hole = holes_.upper_bound(first);
  if (hole != holes_.begin()) --hole;
  while (hole != holes_.end() && hole->first < end) {
    const auto [begin, behind] = *hole;
    if (behind <= first) {
      ++hole;
      continue;
    }
    hole = holes_.erase(hole);
    add_hole(begin, std::min(first, behind));
    add_hole(std::max(end, begin), behind);
  }
  next_ = std::max(next_, end);
}

bool Space::is_given(uint64_t first, uint64_t end) const {
  if (end > next_) return false;
  const auto behind = holes_.lower_bound(end);  // the first that begins behind it
  return behind == holes_.begin() || std::prev(behind)->second <= first;
}

}  // namespace cowd::growing
