// SPDX-License-Identifier: GPL-2.0-or-later
// Bytes of a Disk at any offset and of any length, for formats whose structures are not
// aligned to its blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "formats/plugin.hh"

namespace cowd {

// What is behind the end of the disk reads as zeroes.
Task<> read_any(Disk& disk, uint64_t offset, std::span<std::byte> out);

// Reads the blocks at the two edges first and writes them with the rest: the caller sees to
// it that nobody else writes those, and a crash may tear the whole.
Task<> write_any(Disk& disk, uint64_t offset, std::span<const std::byte> in);

}  // namespace cowd
