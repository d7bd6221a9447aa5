// SPDX-License-Identifier: GPL-2.0-or-later
// The structures of a VHD, as "Virtual Hard Disk Image Format Specification", version 1.0
// (Microsoft, October 2006) has them: "Hard Disk Footer Format", "Dynamic Disk Header
// Format". All integers are big endian.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "formats/common/bytes.hh"
#include "formats/common/signatures.hh"
#include "formats/plugin.hh"

namespace cowd::vhd {

inline constexpr uint64_t kSector = 512;
inline constexpr uint64_t kFooterBytes = 512;
inline constexpr uint64_t kHeaderBytes = 1024;
inline constexpr uint64_t kNoOffset = ~0ULL;
inline constexpr uint32_t kUnused = ~0U;          // of an entry of the block allocation table
inline constexpr uint32_t kBlockBytes = 2 << 20;  // unless somebody wants something else
inline constexpr uint32_t kMinBlockBytes = 64 << 10, kMaxBlockBytes = 32 << 20;
inline constexpr uint64_t kMaxBlocks = 8 << 20;       // whose table is 32 MiB
inline constexpr uint64_t kMaxBytes = 2040ULL << 30;  // of a disk that we create

enum class Type : uint32_t { fixed = 2, dynamic = 3, differencing = 4 };
const char* name_of(Type type);

struct Footer {
  Type type = Type::dynamic;
  uint64_t header_offset = kNoOffset;
  uint64_t size = 0;  // of the disk: "current size"
  uint64_t original_size = 0;
  uint32_t time = 0;     // it was made, in seconds since the beginning of 2000
  uint32_t changed = 0;  // the same of the file's last change; not in the footer
  std::array<char, 4> creator{};
  Uuid uuid{};
  // All of it as it was read, so that nothing is lost when it is written to another place.
  std::array<std::byte, kFooterBytes> raw{};
};

// Why these 512 bytes are no footer of ours; empty: they are one.
std::string problem_with_footer(std::span<const std::byte> bytes);
Footer decode_footer(std::span<const std::byte> bytes);
// Fills in raw too.
void encode(Footer& footer);

struct Locator {
  uint32_t platform = 0;
  uint32_t space = 0;   // bytes, whole sectors; some programs write sectors here
  uint32_t length = 0;  // bytes
  uint64_t offset = 0;
};
inline constexpr uint32_t kRelativePath = 0x57327275;  // "W2ru": UTF-16, little endian

struct Header {
  uint64_t table_offset = 0;
  uint32_t entries = 0;  // of the table
  uint32_t block_bytes = 0;
  Uuid parent{};
  uint32_t parent_time = 0;  // when it was last changed, as Footer::time
  std::string parent_name;   // UTF-8
  std::array<Locator, 8> locators{};
};

std::string problem_with_header(std::span<const std::byte> bytes);
Header decode_header(std::span<const std::byte> bytes);
void encode(const Header& header, std::span<std::byte> out);

// UTF-16 to UTF-8, up to the first 0; nothing if it is not valid.
std::optional<std::string> utf8(std::span<const std::byte> utf16, bool big_endian);

// And back; nothing if it is not valid, or has a 0.
std::optional<Buffer> utf16(std::string_view utf8, bool big_endian);

inline constexpr int64_t kEpoch = 946684800;  // 2000-01-01 00:00:00 UTC, of Footer::time

// Cylinders, heads and sectors for a disk of so many bytes, as the specification's appendix
// computes them ("CHS Calculation"); packed as in the footer.
uint32_t geometry_of(uint64_t bytes);

// Both footers of an image, and the one that counts: that at the end, and where there is none,
// as on a device that is larger than its image, the copy that dynamic images have at the
// beginning. A fixed image's beginning belongs to the guest, so it never goes before the end.
struct Footers {
  Footer current;
  std::string problem_at_end;    // empty: it is there and the same
  std::string problem_at_start;  // of the copy, where there must be one
  bool start_will_do = false;    // without the one at the end it would be the same disk
};
Task<Footers> read_footers(Disk& top);
// While a file is made longer it has none at its end.
void require_good_start(const Disk& top, const Footers& footers);
Task<Header> read_header(Disk& top, const Footer& footer);

// Sectors of a block's own bitmap.
constexpr uint64_t bitmap_sectors(uint64_t block_bytes) {
  return round_up(block_bytes / kSector / 8, kSector) / kSector;
}

}  // namespace cowd::vhd
