// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/image_walk.hh"

#include <algorithm>
#include <cstring>
#include <string>

namespace cowd {

Task<MapEntry> MapWalk::at(uint64_t sector, uint64_t end) {
  MapEntry entry;
  if (sector >= image_.sectors()) {
    entry.range = {sector, end - sector};
    entry.present = entry.data = false;
    entry.zero = true;
    co_return entry;
  }
  while (next_ < entries_.size() && entries_[next_].range.end() <= sector) next_++;
  if (next_ == entries_.size()) {
    const Range window{sector, std::min(window_, std::min(image_.sectors(), end) - sector)};
    entries_ = co_await image_.map(window);
    next_ = 0;
    if (entries_.size() < kFew) window_ = std::min(window_ * 2, kMost);
    if (entries_.size() > 16 * kFew) window_ = std::max(window_ / 4, kFirst);
  }
  if (entries_.empty() || entries_[next_].range.sector > sector)
    throw Error(EIO, "The map of an image has a hole at sector " + std::to_string(sector) +
                         ": a defect of its plugin.");
  entry = entries_[next_];
  const uint64_t skip = sector - entry.range.sector;
  entry.range = {sector, std::min(entry.range.end(), end) - sector};
  if (entry.has_offset) entry.offset += skip * 512;
  co_return entry;
}

Task<> read_or_zeroes(ImageIo& image, Range range, std::span<std::byte> out) {
  const uint64_t end = std::clamp(image.sectors(), range.sector, range.end());
  const uint64_t there = (end - range.sector) * 512;
  if (there) co_await image.read({range.sector, end - range.sector}, out.first(there));
  std::ranges::fill(out.subspan(there), std::byte{0});
}

bool is_zero(std::span<const std::byte> bytes) {
  return bytes.empty() || (bytes[0] == std::byte{0} &&
                           std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

}  // namespace cowd
