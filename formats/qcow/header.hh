// SPDX-License-Identifier: GPL-2.0-or-later
// The header of the first version of QEMU's copy-on-write format, as the document "The QCOW
// Image Format" (Mark McLoughlin, 2006/2008) has it. All integers are big endian.
//
//   | offset | bytes | field                      |
//   |      0 |     4 | magic: QFI fb              |
//   |      4 |     4 | version: 1                 |
//   |      8 |     8 | offset of the backing file's name; 0: none |
//   |     16 |     4 | its length                 |
//   |     20 |     4 | modification time          |
//   |     24 |     8 | size of the disk           |
//   |     32 |     1 | bits of a cluster's offset |
//   |     33 |     1 | bits of an index into a second-level table |
//   |     36 |     4 | encryption: 0 none, 1 AES  |
//   |     40 |     8 | offset of the first-level table |
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "formats/common/bytes.hh"
#include "formats/plugin.hh"

namespace cowd::qcow {

inline constexpr uint64_t kSector = 512;
inline constexpr uint64_t kHeaderBytes = 48;
inline constexpr uint64_t kPacked = 1ULL << 63;       // of an entry: compressed
inline constexpr uint64_t kMaxFirstLevel = 32 << 20;  // bytes

struct Header {
  uint64_t backing_offset = 0;
  uint32_t backing_bytes = 0;
  uint64_t size = 0;
  uint32_t cluster_bits = 12;
  uint32_t table_bits = 9;
  uint64_t first_level = kHeaderBytes;

  uint64_t cluster() const { return 1ULL << cluster_bits; }
  uint64_t entries() const { return 1ULL << table_bits; }  // of a second-level table
  uint64_t table_bytes() const { return entries() * 8; }
  uint64_t clusters() const { return (size + cluster() - 1) >> cluster_bits; }
  uint64_t tables() const { return (clusters() + entries() - 1) >> table_bits; }
};

bool is_qcow(std::span<const std::byte> head);
// Throws EINVAL for what is none, is damaged, or is not served.
Task<Header> read_header(Disk& disk);
void encode(const Header& header, std::span<std::byte> out);
// The name of what lies beneath; empty: nothing.
Task<std::string> backing_name(Disk& disk, const Header& header);

}  // namespace cowd::qcow
