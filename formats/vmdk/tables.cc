// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/vmdk/tables.hh"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"

namespace cowd::vmdk {

using growing::Piece;
using growing::Where;

Extents::Extents(std::shared_ptr<Disk> top, Descriptor descriptor, Text text,
                 std::vector<Part> parts)
    : top_(std::move(top)),
      descriptor_(std::move(descriptor)),
      text_(std::move(text)),
      parts_(std::move(parts)),
      block_(kDefaultGrain) {
  for (const Part& part : parts_)
    if (part.sparse) block_ = static_cast<uint32_t>(part.sparse->header().grain);
}

growing::Home Extents::home_of(uint64_t block) const {
  const Part& part = part_at(block * block_);
  return {part.dest, (part.range.end() + block_ - 1) / block_};
}

const Part& Extents::part_at(uint64_t sector) const {
  return *std::ranges::upper_bound(parts_, sector, {},
                                   [](const Part& part) { return part.range.end(); });
}

Task<std::vector<Piece>> Extents::find(Range range) {
  std::vector<Piece> pieces;
  for (uint64_t at = range.sector; at < range.end();) {
    const Part& part = part_at(at);
    const uint64_t within = at - part.range.sector;
    if (part.sparse) {
      co_await part.sparse->find(within, std::min(range.end(), part.range.end()) - at, pieces);
      // An extent may be longer than the disk has of it.
      while (pieces.back().range.sector >= part.range.end()) pieces.pop_back();
      Range& last = pieces.back().range;
      last.len = std::min(last.end(), part.range.end()) - last.sector;
      break;  // as far as one table goes
    }
    Piece piece;
    piece.range = {at, part.range.len - within};
    piece.where = part.zeroes ? Where::zero : Where::here;
    piece.dest = part.zeroes ? 0 : part.dest;
    piece.sector = part.zeroes ? 0 : part.offset + within;
    pieces.push_back(piece);
    at = piece.range.end();
  }
  co_return pieces;
}

Task<> Extents::unpack(uint64_t block, std::span<std::byte> out) {
  const uint64_t sector = block * block_;
  const Part& part = part_at(sector);
  co_await part.sparse->unpack(sector - part.range.sector, out);
}

Task<> Extents::begin_writing() {
  co_await write_cid();
  co_await mark_unclean(true);
  co_await flush();
  written_ = true;
}

Task<> Extents::flush() {
  for (const Part& part : parts_)
    if (part.sparse && part.disk != top_) co_await part.disk->flush();
  co_await top_->flush();
}

// As many digits as there are, so that nothing moves.
Task<> Extents::write_cid() {
  const auto place = find_cid(text_.text);
  if (!place)
    throw Error(EINVAL, top_->name() +
                            " has no CID that could be changed, as it must be before the first "
                            "write: attach it read-only, or convert it.");
  std::random_device random;
  std::string digits;
  do {
    char text[9];
    std::snprintf(text, sizeof text, "%08x", static_cast<unsigned>(random()));
    digits = std::string(text, 8).substr(8 - std::min<size_t>(place->digits, 8));
    digits.insert(0, place->digits - digits.size(), '0');
  } while (text_.text.compare(place->offset, place->digits, digits) == 0 ||
           digits.starts_with("ffffff"));
  const auto bytes = std::as_bytes(std::span(digits.data(), digits.size()));
  co_await write_any(*top_, text_.offset + place->offset, bytes);
  text_.text.replace(place->offset, place->digits, digits);
  descriptor_.cid = static_cast<uint32_t>(std::stoul(digits, nullptr, 16));
}

Task<> Extents::mark_unclean(bool unclean) {
  const std::vector<std::byte> mark(1, std::byte(unclean));
  for (Part& part : parts_)
    if (part.sparse) co_await write_any(*part.disk, kUncleanAt, mark);
}

Task<> Extents::link(std::span<const growing::Link> links) {
  while (!links.empty()) {
    const Part& part = part_at(links.front().block * block_);
    std::vector<growing::Link> own;  // counted within the extent
    for (const growing::Link& each : links) {
      if (each.block * block_ >= part.range.end()) break;
      own.push_back({each.block - part.range.sector / block_, each.sector});
    }
    links = links.subspan(own.size());
    co_await part.sparse->link(own);
  }
}

Task<> Extents::finish(std::span<const uint64_t> ends) {
  if (written_) {
    co_await flush();
    co_await mark_unclean(false);
  }
  used_lengths_.clear();
  for (const Part& part : parts_) {
    const uint64_t bytes = part.sparse ? ends[part.dest] * kSector : 0;
    if (bytes != 0 && part.disk == top_) used_bytes_ = bytes;
    if (bytes != 0 && part.disk != top_) used_lengths_.push_back({part.disk.get(), bytes});
  }
}

nlohmann::json Extents::stats() const {
  char cid[9];
  std::snprintf(cid, sizeof cid, "%08x", descriptor_.cid);
  uint64_t reads = 0, cached = 0;
  for (const Part& part : parts_) {
    if (!part.sparse) continue;
    reads += part.sparse->reads();
    cached += part.sparse->cached();
  }
  return {{"type", descriptor_.create_type},
          {"cid", cid},
          {"extents", parts_.size()},
          {"tables_cached", cached},
          {"table_reads", reads}};
}

}  // namespace cowd::vmdk
