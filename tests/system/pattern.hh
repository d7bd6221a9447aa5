// SPDX-License-Identifier: GPL-2.0-or-later
// What blockload writes: each 512-byte sector says which sector it is and which
// version of it, so that a sector that is stale, lost or misplaced says so itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

inline constexpr size_t kSector = 512;

// Version 0 of a sector is zeroes: nobody has written it.
void fill_sector(std::byte* sector, uint64_t number, uint32_t version, uint64_t seed);

bool is_sector(const std::byte* sector, uint64_t number, uint32_t version, uint64_t seed);

// What a sector seems to be, for the sentence about a wrong one.
std::string describe_sector(const std::byte* sector);
