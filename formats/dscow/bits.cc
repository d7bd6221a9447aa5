// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/dscow/bits.hh"

#include <algorithm>
#include <bit>
#include <cstring>

#include "formats/dscow/layout.hh"

namespace cowd::dscow {
namespace {

// Calls change(byte index, mask) for every byte that [first, first + count) touches.
template <typename Change>
void for_masks(uint64_t first, uint64_t count, Change change) {
  for (uint64_t at = first, end = first + count; at < end;) {
    const uint64_t take = std::min<uint64_t>(8 - at % 8, end - at);
    change(at / 8, std::byte(((1U << take) - 1) << (at % 8)));
    at += take;
  }
}

}  // namespace

void set_bits(std::span<std::byte> bits, uint64_t first, uint64_t count) {
  for_masks(first, count, [&](uint64_t at, std::byte mask) { bits[at] |= mask; });
}

void clear_bits(std::span<std::byte> bits, uint64_t first, uint64_t count) {
  for_masks(first, count, [&](uint64_t at, std::byte mask) { bits[at] &= ~mask; });
}

void or_bits(std::span<std::byte> to, uint64_t to_at, std::span<const std::byte> from,
             uint64_t from_at, uint64_t count) {
  for (uint64_t done = 0; done < count;) {
    const uint64_t source = from_at + done, end = from_at + count;
    if (!get_bit(from, source)) {
      done = run_end(from, source, end) - from_at;
      continue;
    }
    const uint64_t stop = run_end(from, source, end);
    set_bits(to, to_at + done, stop - source);
    done = stop - from_at;
  }
}

uint64_t count_bits(std::span<const std::byte> bits) {
  uint64_t count = 0;
  size_t at = 0;
  for (uint64_t word = 0; at + sizeof word <= bits.size(); at += sizeof word) {
    std::memcpy(&word, bits.data() + at, sizeof word);
    count += static_cast<uint64_t>(std::popcount(word));
  }
  for (; at < bits.size(); at++)
    count += static_cast<uint64_t>(std::popcount(std::to_integer<unsigned>(bits[at])));
  return count;
}

uint64_t run_end(std::span<const std::byte> bits, uint64_t at, uint64_t end) {
  const bool value = get_bit(bits, at);
  const std::byte whole = value ? std::byte{0xff} : std::byte{0};
  for (at++; at < end; at++) {
    while (at % 8 == 0 && at + 8 <= end && bits[at / 8] == whole) at += 8;
    if (at >= end || get_bit(bits, at) != value) break;
  }
  return std::min(at, end);
}

PagePtr empty_page() {
  static const PagePtr page = std::make_shared<const Buffer>(kBlock);
  return page;
}

}  // namespace cowd::dscow
