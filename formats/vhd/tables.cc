// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/vhd/tables.hh"

#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"

namespace cowd::vhd {
namespace {

using growing::Piece;
using growing::Where;

constexpr size_t kMaxPieces = 4096;       // of one answer
constexpr uint64_t kMaxUnused = 1 << 16;  // blocks beyond those that somebody asked for
constexpr uint64_t kMaxBlocksAhead = 8;   // the same, whose bitmaps must be read

bool get_bit(std::span<const std::byte> bits, uint64_t at) {
  return std::to_integer<unsigned>(bits[at / 8]) & 0x80u >> at % 8;
}

uint64_t run_end(std::span<const std::byte> bits, uint64_t at, uint64_t limit) {
  const bool set = get_bit(bits, at);
  const std::byte same = set ? std::byte{0xff} : std::byte{0};
  while (at < limit)
    if (at % 8 == 0 && bits[at / 8] == same)
      at += 8;
    else if (get_bit(bits, at) == set)
      at++;
    else
      break;
  return std::min(at, limit);
}

nlohmann::json json_of(const Footer& footer) {
  return {{"type", name_of(footer.type)},
          {"uuid", to_string(footer.uuid)},
          {"changed", footer.changed}};
}

}  // namespace

BlockTables::BlockTables(Disk& top, const Footer& footer, const Header& header)
    : top_(top),
      footer_(footer),
      header_(header),
      missing_(footer.type == Type::differencing ? growing::Where::beneath : growing::Where::zero),
      bitmaps_(top, bitmap_sectors(header.block_bytes) * kSector, 4 << 20) {}

Task<> BlockTables::load() {
  const uint64_t blocks = (sectors() + block_sectors() - 1) / block_sectors();
  Buffer bytes(blocks * 4);
  co_await read_any(top_, header_.table_offset, bytes);
  entries_.resize(blocks);
  whole_.resize(blocks);
  const uint64_t file_sectors = top_.size() / kSector;
  const uint64_t needed = bitmap_sectors(header_.block_bytes) + block_sectors();
  for (uint64_t block = 0; block < blocks; block++) {
    entries_[block] = load_be<uint32_t>(bytes, block * 4);
    if (entries_[block] == kUnused) continue;
    if (entries_[block] + needed > file_sectors || entries_[block] == 0)
      throw Error(EINVAL, top_.name() + ", a VHD image, is damaged: block " +
                              std::to_string(block) + " of the disk is at sector " +
                              std::to_string(entries_[block]) + ", and the file has " +
                              std::to_string(file_sectors) + ". If it was cut off, copy it again.");
  }
}

uint64_t BlockTables::headers_end() const {
  const uint64_t table_end = header_.table_offset + entries_.size() * 4;
  return round_up(std::max(table_end, footer_.header_offset + kHeaderBytes), kSector) / kSector;
}

// Where, and which block.
std::vector<std::pair<uint32_t, uint64_t>> BlockTables::placed() const {
  std::vector<std::pair<uint32_t, uint64_t>> placed;
  for (uint64_t block = 0; block < entries_.size(); block++)
    if (entries_[block] != kUnused) placed.emplace_back(entries_[block], block);
  std::ranges::sort(placed);
  return placed;
}

std::vector<std::string> BlockTables::overlaps() const {
  std::vector<std::string> found;
  uint64_t end = headers_end();
  std::string what = "the headers or the block table";
  for (const auto& [sector, block] : placed()) {
    if (sector < end)
      found.push_back("Block " + std::to_string(block) + " lies at sector " +
                      std::to_string(sector) + ", on " + what + ".");
    end = sector + bitmap_sectors(header_.block_bytes) + block_sectors();
    what = "block " + std::to_string(block);
  }
  return found;
}

// What tapdisk puts behind the table, a bitmap of blocks that are whole, is left alone. A table
// that says it is longer than the file has those entries that the disk needs.
Task<uint64_t> BlockTables::used_end() {
  const auto end_with = [this](uint64_t entries) {
    return round_up(header_.table_offset + entries * 4, kSector);
  };
  uint64_t table_end = end_with(header_.entries);
  if (table_end > top_.size()) table_end = end_with(entries_.size());
  const auto other = [this](uint64_t offset, uint64_t bytes) {
    if (offset < top_.size() && bytes < top_.size())
      others_.push_back({offset / kSector, (offset % kSector + bytes + kSector - 1) / kSector});
  };
  others_.assign(1, {0, table_end / kSector});
  other(footer_.header_offset, kHeaderBytes);
  Buffer extra(kSector);
  co_await read_any(top_, table_end, extra);
  if (std::memcmp(extra.data(), "tdbatmap", 8) == 0)
    other(load_be<uint64_t>(extra, 8), uint64_t{load_be<uint32_t>(extra, 16)} * kSector);
  for (const Locator& locator : header_.locators)
    if (locator.platform != 0) other(locator.offset, locator.length);
  uint64_t end = 0;
  for (const Range& each : others_) end = std::max(end, each.end());
  for (uint64_t block = 0; block < entries_.size(); block++)
    if (entries_[block] != kUnused) end = std::max(end, data_sector(block) + block_sectors());
  co_return end;
}

// Holes are looked for behind the first block only: what programs that we do not know put into
// an image is before that.
std::shared_ptr<growing::Space> BlockTables::space(uint64_t end, uint64_t limit) const {
  auto space = std::make_shared<growing::Space>(end, limit);
  const auto blocks = placed();
  for (size_t i = 0; i + 1 < blocks.size(); i++)
    space->add_hole(data_sector(blocks[i].second) + block_sectors(), blocks[i + 1].first);
  for (const Range& each : others_) space->used(each.sector, each.end());
  return space;
}

bool BlockTables::aligned_to(uint64_t bytes) const {
  for (uint64_t block = 0; block < entries_.size(); block++)
    if (entries_[block] != kUnused && data_sector(block) * kSector % bytes != 0) return false;
  return true;
}

uint64_t BlockTables::allocated() const {
  return static_cast<uint64_t>(
      std::ranges::count_if(entries_, [](uint32_t entry) { return entry != kUnused; }));
}

Range BlockTables::sectors_of(uint64_t block) const {
  const uint64_t sector = block * block_sectors();
  return {sector, std::min<uint64_t>(block_sectors(), sectors() - sector)};
}

Task<std::vector<Piece>> BlockTables::find(Range range) {
  std::vector<Piece> pieces;
  uint64_t ahead = 0;
  for (uint64_t block = range.sector / block_sectors(); block < entries_.size(); block++) {
    const Range whole = sectors_of(block);
    if (entries_[block] == kUnused) {
      if (!pieces.empty() && pieces.back().where == missing_ && pieces.back().whole)
        pieces.back().range.len += whole.len;
      else
        pieces.push_back({whole, missing_});
    } else {
      if (whole.sector >= range.end() && ++ahead > kMaxBlocksAhead) break;
      co_await find_in(block, pieces);
    }
    if (pieces.size() >= kMaxPieces || whole.sector > range.end() + kMaxUnused * block_sectors())
      break;
  }
  // They begin with their block: what is before the range goes.
  while (pieces.front().range.end() <= range.sector) pieces.erase(pieces.begin());
  Piece& first = pieces.front();
  const uint64_t before = range.sector - first.range.sector;
  first.range = {range.sector, first.range.len - before};
  if (first.where == Where::here) first.sector += before;
  co_return pieces;
}

Task<> BlockTables::find_in(uint64_t block, std::vector<Piece>& pieces) {
  const Range range = sectors_of(block);
  const uint64_t data = data_sector(block);
  TablePtr bits;
  if (!whole_[block]) {
    bits = co_await bitmaps_.get(bitmap_at(block));
    if (get_bit(*bits, 0) && run_end(*bits, 0, range.len) == range.len) whole_[block] = true;
  }
  if (whole_[block]) {
    pieces.push_back({range, Where::here, 0, data, true});
    co_return;
  }
  for (uint64_t at = 0; at < range.len;) {
    const uint64_t end = run_end(*bits, at, range.len);
    const bool set = get_bit(*bits, at);
    pieces.push_back({{range.sector + at, end - at},
                      set ? Where::here : missing_,
                      0,
                      set ? data + at : 0,
                      false});
    at = end;
  }
}

Task<> BlockTables::unpack(uint64_t, std::span<std::byte>) { co_return; }

Task<> BlockTables::begin_writing() {
  co_await write_any(top_, top_.size() - kFooterBytes, footer_.raw);
  co_await top_.flush();
}

// The data first: with its bit a sector has a content.
Task<> BlockTables::make_whole(uint64_t block, Beneath* beneath) {
  std::vector<Piece> pieces;
  co_await find_in(block, pieces);
  if (whole_[block]) co_return;
  const uint64_t first = sectors_of(block).sector;
  for (const Piece& piece : pieces) {
    if (piece.where == Where::here) continue;
    Buffer bytes(piece.range.len * kSector);
    if (piece.where == Where::beneath && beneath) co_await beneath->read_bytes(piece.range, bytes);
    const uint64_t sector = data_sector(block) + piece.range.sector - first;
    co_await write_any(top_, sector * kSector, bytes);
  }
  co_await top_.flush();
  auto ones =
      std::make_shared<Buffer>(bitmap_sectors(header_.block_bytes) * kSector, std::byte{0xff});
  co_await write_any(top_, bitmap_at(block), *ones);
  co_await top_.flush();
  bitmaps_.put(bitmap_at(block), std::move(ones));
}

// With the padding before it, which is whole blocks of any disk.
Task<> BlockTables::write_bitmap(uint64_t data_sector) {
  const uint64_t lead = lead_sectors(header_.block_bytes);
  Buffer bytes(lead * kSector);
  const uint64_t bitmap = bitmap_sectors(header_.block_bytes) * kSector;
  std::fill(bytes.end() - static_cast<ptrdiff_t>(bitmap), bytes.end(), std::byte{0xff});
  co_await top_.write_at((data_sector - lead) * kSector, bytes);
}

Task<> BlockTables::link(std::span<const growing::Link> links) {
  std::vector<uint32_t> entries = entries_;
  for (const growing::Link& each : links) {
    co_await write_bitmap(each.sector);
    const uint64_t bitmap = each.sector - bitmap_sectors(header_.block_bytes);
    entries[each.block] = static_cast<uint32_t>(bitmap);
  }
  co_await top_.flush();
  // An attempt before this one may have written others; those are among the links again.
  const uint64_t per_block = top_.block_size() / 4;
  for (size_t i = 0; i < links.size();) {
    const uint64_t first = round_down(links[i].block, per_block);
    const uint64_t last = std::min<uint64_t>(first + per_block, entries.size());
    co_await write_entries(entries, first, last);
    while (i < links.size() && links[i].block < last) i++;
  }
  // The engine looks at its own list first until the last flush: this may come too early.
  entries_ = std::move(entries);
  for (const growing::Link& each : links) whole_[each.block] = true;
}

Task<> BlockTables::write_entries(std::vector<uint32_t>& entries, uint64_t first, uint64_t last) {
  Buffer bytes((last - first) * 4);
  for (uint64_t i = first; i < last; i++) store_be<uint32_t>(bytes, (i - first) * 4, entries[i]);
  co_await write_any(top_, header_.table_offset + first * 4, bytes);
}

// At the end of a whole block of the disk: a file that ends within one is not seen to its end.
Task<> BlockTables::finish(std::span<const uint64_t> ends) {
  used_bytes_ =
      std::min(round_up(ends.front() * kSector + kFooterBytes, top_.block_size()), top_.size());
  co_await write_any(top_, used_bytes_ - kFooterBytes, footer_.raw);
}

nlohmann::json BlockTables::stats() const {
  nlohmann::json json = json_of(footer_);
  json["blocks"] = entries_.size();
  json["blocks_allocated"] = allocated();
  json["bitmaps_cached"] = bitmaps_.size();
  json["bitmap_reads"] = bitmaps_.reads();
  return json;
}

Task<std::vector<Piece>> FixedTables::find(Range range) {
  Piece piece;
  piece.range = {range.sector, sectors() - range.sector};
  piece.where = Where::here;
  piece.sector = range.sector;
  std::vector<Piece> pieces{piece};
  co_return pieces;
}

nlohmann::json FixedTables::stats() const { return json_of(footer_); }

}  // namespace cowd::vhd
