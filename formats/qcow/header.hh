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
//   |     34 |     2 | padding, 0. Ours: the length of the backing file's format |
//   |     36 |     4 | encryption: 0 none, 1 AES  |
//   |     40 |     8 | offset of the first-level table |
//
// The format has no place for the backing file's format. We write its name right behind the
// file's name; nobody else looks there. Where it is not said, the file is raw, as a VMDK's parent
// is a VMDK: what is in the file is never asked.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "formats/common/backing.hh"
#include "formats/common/bytes.hh"
#include "formats/plugin.hh"

namespace cowd::qcow {

inline constexpr uint64_t kSector = 512;
inline constexpr uint64_t kHeaderBytes = 48;
inline constexpr uint64_t kPacked = 1ULL << 63;       // of an entry: compressed
inline constexpr uint64_t kMaxFirstLevel = 32 << 20;  // bytes

struct Header {
  uint64_t backing_offset = 0;
  uint32_t backing_bytes = 0;  // 0: none, wherever it is
  uint16_t format_bytes = 0;
  uint64_t size = 0;
  uint32_t cluster_bits = 12;
  uint32_t table_bits = 9;
  uint64_t first_level = kHeaderBytes;

  uint64_t cluster() const { return 1ULL << cluster_bits; }
  uint64_t entries() const { return 1ULL << table_bits; }  // of a second-level table
  uint64_t table_bytes() const { return entries() * 8; }
  uint64_t clusters() const { return (size + cluster() - 1) >> cluster_bits; }
  uint64_t tables() const { return (clusters() + entries() - 1) >> table_bits; }
  uint64_t first_level_end() const { return first_level + tables() * 8; }
  bool has_backing() const { return backing_offset != 0 && backing_bytes != 0; }
  uint64_t backing_end() const { return backing_offset + backing_bytes + format_bytes; }
};

bool is_qcow(std::span<const std::byte> head);
// Throws EINVAL for what is none, is damaged, or is not served.
Task<Header> read_header(Disk& disk);
void encode(const Header& header, std::span<std::byte> out);
// Into its first bytes, kHeaderBytes at least: what it says of the name, and nothing else.
void encode_backing(const Header& header, std::span<std::byte> head);
// Of what lies beneath. No file: nothing; no format: it is not said.
Task<BackingName> read_backing_name(Disk& disk, const Header& header);
// Throws ENAMETOOLONG for a format that none is called.
void set_backing(Header& header, const BackingName& name, uint64_t offset);
// As it stands in the file.
std::string text_of(const BackingName& name);

}  // namespace cowd::qcow
