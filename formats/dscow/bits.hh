// SPDX-License-Identifier: GPL-2.0-or-later
// Bit strings in bytes, least significant bit first: one page of the bitmap, and
// the answers to the kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "formats/common/bytes.hh"

namespace cowd::dscow {

// A page is never changed once it can be seen by another: a changed copy takes its place.
using PagePtr = std::shared_ptr<const Buffer>;

inline bool get_bit(std::span<const std::byte> bits, uint64_t at) {
  return (std::to_integer<unsigned>(bits[at / 8]) >> (at % 8)) & 1;
}

void set_bits(std::span<std::byte> bits, uint64_t first, uint64_t count);
void clear_bits(std::span<std::byte> bits, uint64_t first, uint64_t count);

// ORs count bits from `from` (at bit from_at) into `to` (at bit to_at).
void or_bits(std::span<std::byte> to, uint64_t to_at, std::span<const std::byte> from,
             uint64_t from_at, uint64_t count);

uint64_t count_bits(std::span<const std::byte> bits);

// The first bit in (at, end) that differs from bit `at`, or end.
uint64_t run_end(std::span<const std::byte> bits, uint64_t at, uint64_t end);

// A page without any bit.
PagePtr empty_page();

}  // namespace cowd::dscow
