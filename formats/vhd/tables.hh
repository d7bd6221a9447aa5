// SPDX-License-Identifier: GPL-2.0-or-later
// Where the blocks of a dynamic or differencing VHD are. A block is a bitmap, a bit a sector,
// in whole sectors, and its data. Bit 0: the sector was never written; it reads as zeroes or
// from the parent. The most significant bit of each byte comes first.
//
// A new block gets its bitmap all ones, and its data so that it begins at a multiple of 4 KiB:
//   | padding | bitmap | data ... |
// Order: the data; the bitmap; flush; the table's entry; flush. The footer at the end of the
// file would be in the way: before the first block is placed, a copy goes to the end of the
// room that the file was given, so that there always is one at the end and one at the start.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "formats/common/table_cache.hh"
#include "formats/growing/space.hh"
#include "formats/growing/tables.hh"
#include "formats/vhd/footer.hh"

namespace cowd::vhd {

// The sectors before a new block's data: its bitmap, up to the next 4 KiB.
constexpr uint64_t lead_sectors(uint64_t block_bytes) {
  return round_up(bitmap_sectors(block_bytes), 8);
}

class BlockTables : public growing::Tables {
 public:
  BlockTables(Disk& top, const Footer& footer, const Header& header);
  // Reads the table. Throws where an entry is not in the file.
  Task<> load();
  // The sector behind all that the image uses.
  Task<uint64_t> used_end();
  // The room behind that and the holes between blocks, until `limit`.
  std::shared_ptr<growing::Space> space(uint64_t end, uint64_t limit) const;
  // Whether all data begins at blocks of the disk.
  bool aligned_to(uint64_t bytes) const;
  // Sentences about blocks that lie on each other or on the headers and the table.
  std::vector<std::string> overlaps() const;

  uint64_t sectors() const override { return footer_.size / kSector; }
  uint32_t block_sectors() const override { return header_.block_bytes / 512; }
  Task<std::vector<growing::Piece>> find(Range range) override;
  Task<> unpack(uint64_t block, std::span<std::byte> out) override;
  Task<> begin_writing() override;
  Task<> make_whole(uint64_t block, Beneath* beneath) override;
  Task<> link(std::span<const growing::Link> links) override;
  Task<> finish(std::span<const uint64_t> ends) override;
  uint64_t used_bytes() const override { return used_bytes_; }
  nlohmann::json stats() const override;

  uint64_t allocated() const;

 private:
  uint64_t bitmap_at(uint64_t block) const { return uint64_t{entries_[block]} * kSector; }
  uint64_t data_sector(uint64_t block) const {
    return entries_[block] + bitmap_sectors(header_.block_bytes);
  }
  uint64_t headers_end() const;
  std::vector<std::pair<uint32_t, uint64_t>> placed() const;
  Range sectors_of(uint64_t block) const;
  Task<> find_in(uint64_t block, std::vector<growing::Piece>& pieces);
  Task<> write_bitmap(uint64_t data_sector);
  Task<> write_entries(std::vector<uint32_t>& entries, uint64_t first, uint64_t last);

  Disk& top_;
  const Footer footer_;
  const Header header_;
  const growing::Where missing_;  // what was never written
  std::vector<Range> others_;     // what used_end() has found that is no block, in sectors
  std::vector<uint32_t> entries_;
  std::vector<bool> whole_;  // known to have no 0 in its bitmap
  TableCache bitmaps_;
  uint64_t used_bytes_ = 0;
};

// A fixed image: the disk from its beginning.
class FixedTables : public growing::Tables {
 public:
  explicit FixedTables(const Footer& footer) : footer_(footer) {}
  uint64_t sectors() const override { return footer_.size / kSector; }
  uint32_t block_sectors() const override { return 4096; }
  Task<std::vector<growing::Piece>> find(Range range) override;
  Task<> unpack(uint64_t, std::span<std::byte>) override { co_return; }
  Task<> link(std::span<const growing::Link>) override { co_return; }
  nlohmann::json stats() const override;

 private:
  const Footer footer_;
};

}  // namespace cowd::vhd
