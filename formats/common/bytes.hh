// SPDX-License-Identifier: GPL-2.0-or-later
// Integers in the byte order of a format.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace cowd {

using Buffer = std::vector<std::byte>;

template <std::unsigned_integral T>
T load_le(std::span<const std::byte> bytes, size_t at) {
  T value = 0;
  for (size_t i = sizeof(T); i-- > 0;)
    value = static_cast<T>(static_cast<uint64_t>(value) << 8 |
                           std::to_integer<uint64_t>(bytes[at + i]));
  return value;
}

template <std::unsigned_integral T>
void store_le(std::span<std::byte> bytes, size_t at, T value) {
  for (size_t i = 0; i < sizeof(T); i++) bytes[at + i] = std::byte(value >> (8 * i));
}

template <std::unsigned_integral T>
T load_be(std::span<const std::byte> bytes, size_t at) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); i++)
    value = static_cast<T>(static_cast<uint64_t>(value) << 8 |
                           std::to_integer<uint64_t>(bytes[at + i]));
  return value;
}

template <std::unsigned_integral T>
void store_be(std::span<std::byte> bytes, size_t at, T value) {
  for (size_t i = sizeof(T); i-- > 0; value = static_cast<T>(static_cast<uint64_t>(value) >> 8))
    bytes[at + i] = std::byte(value);
}

constexpr uint64_t round_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}
constexpr uint64_t round_down(uint64_t value, uint64_t unit) { return value / unit * unit; }

}  // namespace cowd
