// SPDX-License-Identifier: GPL-2.0-or-later
// What a disk holds already, as far as a few well-known magic numbers tell:
// create must not overwrite it unasked.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/plugin.hh"

namespace cowd {

struct Signature {
  std::string what;  // "an ext2/3/4 file system"
  uint64_t offset;   // bytes, of the magic number
  bool image;        // of a disk, in a format that is not raw
};

// Signatures lie in the first so many bytes of a disk.
inline constexpr size_t kSignatureSpan = 68 * 1024;

std::vector<Signature> find_signatures(std::span<const std::byte> head);

// Reads the head of the disk first.
Task<std::vector<Signature>> find_signatures(Disk& disk);

// The UUID of the file system, volume or partition table at the start of a disk;
// all zero where there is none that we know.
using Uuid = std::array<std::byte, 16>;
Uuid find_uuid(std::span<const std::byte> head);
std::string to_string(const Uuid& uuid);
std::optional<Uuid> parse_uuid(std::string_view text);  // the spelling of to_string(), either case

}  // namespace cowd
