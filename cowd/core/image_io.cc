// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/image_io.hh"

#include <algorithm>
#include <string>
#include <utility>

#include "formats/common/any_offset.hh"
#include "formats/common/bytes.hh"

namespace cowd {
namespace {

constexpr uint64_t kSector = 512;
constexpr uint64_t kLeafGranules = 32768;
constexpr uint64_t kPiece = (1 << 20) / kSector;  // of copies and zeroes

bool covers(Range range, uint64_t sector) { return range.sector <= sector && sector < range.end(); }

// A granule of its own: its first write copies what it does not cover.
Extent as_overlay(Extent extent) {
  if (extent.copy_first) extent.granule = static_cast<uint32_t>(extent.range.len);
  return extent;
}

// The bits of `leaf` among the answers; null if they are not there.
const Bitmap* bits_of(const std::vector<Answer>& answers, Range leaf) {
  for (const Answer& answer : answers) {
    const auto* bitmap = std::get_if<Bitmap>(&answer);
    if (bitmap && bitmap->range == leaf) return bitmap;
  }
  return nullptr;
}

bool is_set(const Bitmap& bitmap, uint64_t granule) {
  if (bitmap.bits.empty()) return bitmap.all;
  return std::to_integer<unsigned>(bitmap.bits[granule / 8]) >> (granule % 8) & 1;
}

}  // namespace

Error ImageIo::wrong(const char* what, Range range) const {
  const std::string name = destinations_.empty() ? "The image" : destinations_[0].disk->name();
  return Error(EIO, name + ": for sectors " + std::to_string(range.sector) + " to " +
                        std::to_string(range.end()) + " its format " + what +
                        ": a defect of its plugin.");
}

Disk& ImageIo::disk(uint32_t dest, bool to_write) const {
  if (dest >= destinations_.size()) throw wrong("names a destination that is not there", {});
  const Destination& found = destinations_[dest];
  if (to_write && !found.writable) throw wrong("gives a place that is only read to write to", {});
  return *found.disk;
}

// --- what the image says ----------------------------------------------------------------

// The one that range.sector is in. answers_ has what came with it; a `Data` is left there.
Task<Extent> ImageIo::extent_for(Range range, Access access) {
  answers_ = co_await image_.resolve(range, access);
  for (const Answer& answer : answers_) {
    const auto* extent = std::get_if<Extent>(&answer);
    if (!extent || !covers(extent->range, range.sector)) continue;
    const Side& side = access == Access::write ? extent->write : extent->read;
    if (side.kind == Side::Kind::none) throw wrong("has no answer to what was asked", range);
    co_return as_overlay(*extent);
  }
  co_return Extent{};
}

// Asks for the bits, where they did not come with the overlay.
Task<ImageIo::Part> ImageIo::part_of(const Extent& overlay, Range range) {
  if (overlay.copy_first) co_return Part{range, false};
  const uint64_t granule = overlay.granule, span = kLeafGranules * granule;
  const uint64_t start = overlay.range.sector + (range.sector - overlay.range.sector) / span * span;
  const Range leaf{start, std::min(span, overlay.range.end() - start)};
  if (!bits_of(answers_, leaf)) answers_ = co_await image_.resolve(leaf, Access::leaf);
  const Bitmap* bitmap = bits_of(answers_, leaf);
  if (!bitmap || (!bitmap->bits.empty() && bitmap->bits.size() * 8 < leaf.len / granule))
    throw wrong("does not say what is promoted", leaf);
  const uint64_t first = (range.sector - start) / granule;
  const uint64_t limit = std::min(range.end(), leaf.end());
  Part part{range, is_set(*bitmap, first)};
  uint64_t end = start + (first + 1) * granule;
  while (end < limit && is_set(*bitmap, (end - start) / granule) == part.promoted) end += granule;
  part.range.len = std::min(end, limit) - range.sector;
  co_return part;
}

// --- reads ------------------------------------------------------------------------------

Task<> ImageIo::read(Range range, std::span<std::byte> out) {
  while (range.len) {
    const uint64_t done = co_await read_some(range, out);
    out = out.subspan(done * kSector);
    range = {range.sector + done, range.len - done};
  }
}

Task<uint64_t> ImageIo::read_some(Range range, std::span<std::byte> out) {
  const Extent extent = co_await extent_for(range, Access::read);
  if (extent.range.len == 0) {
    for (const Answer& answer : answers_) {
      const auto* data = std::get_if<Data>(&answer);
      if (!data || data->range.sector != range.sector || data->range.len == 0) continue;
      const uint64_t len = std::min(data->range.len, range.len);
      std::copy_n(data->bytes.begin(), len * kSector, out.begin());
      co_return len;
    }
    throw wrong("has no answer to what was asked", range);
  }
  range.len = std::min(range.end(), extent.range.end()) - range.sector;
  Side side = extent.read;
  if (extent.granule) {
    const Part part = co_await part_of(extent, range);
    range = part.range;
    if (part.promoted) side = extent.write;
  }
  co_await get(extent, side, range, out.first(range.len * kSector));
  co_return range.len;
}

Task<> ImageIo::get(const Extent& extent, const Side& side, Range range, std::span<std::byte> out) {
  if (side.kind != Side::Kind::disk) {
    std::ranges::fill(out, std::byte{0});
    co_return;
  }
  const uint64_t from = side.sector + (range.sector - extent.range.sector);
  co_await read_any(disk(side.dest, false), from * kSector, out);
}

// --- writes -----------------------------------------------------------------------------

Task<> ImageIo::write(Range range, std::span<const std::byte> in) {
  while (range.len) {
    const uint64_t done = co_await write_some(range, in);
    in = in.subspan(done * kSector);
    range = {range.sector + done, range.len - done};
    if (uncommitted_ >= kMostUncommitted) co_await commit();
  }
}

Task<uint64_t> ImageIo::write_some(Range range, std::span<const std::byte> in) {
  const Extent extent = co_await extent_for(range, Access::write);
  if (extent.write.kind != Side::Kind::disk) throw wrong("gives no place to write to", range);
  // No more than may be promoted before a commit.
  const uint64_t most = kMostUncommitted * std::max<uint64_t>(extent.granule, 1);
  range.len = std::min({range.len, extent.range.end() - range.sector, most});
  if (extent.granule) {
    const Part part = co_await part_of(extent, range);
    range = part.range;
    if (!part.promoted) {
      co_await promote(extent, range, in.first(range.len * kSector));
      co_return range.len;
    }
  }
  co_await put(extent, range, in.first(range.len * kSector));
  // All of it is there already but for what was just written.
  if (extent.uncommitted) co_await tell(extent, extent.range);
  co_return range.len;
}

Task<> ImageIo::put(const Extent& extent, Range range, std::span<const std::byte> in) {
  const uint64_t to = extent.write.sector + (range.sector - extent.range.sector);
  co_await write_any(disk(extent.write.dest, true), to * kSector, in);
}

// Whole granules: what `range` does not cover of them is copied.
Task<> ImageIo::promote(const Extent& overlay, Range range, std::span<const std::byte> in) {
  const uint64_t granule = overlay.granule, base = overlay.range.sector;
  const uint64_t start = base + (range.sector - base) / granule * granule;
  const uint64_t end = base + (range.end() - base + granule - 1) / granule * granule;
  co_await copy(overlay, {start, range.sector - start});
  co_await copy(overlay, {range.end(), end - range.end()});
  co_await put(overlay, range, in);
  co_await tell(overlay, {start, end - start});
}

Task<> ImageIo::copy(const Extent& overlay, Range range) {
  Buffer bytes(std::min(range.len, kPiece) * kSector);
  while (range.len) {
    const Range piece{range.sector, std::min(range.len, kPiece)};
    const auto part = std::span<std::byte>(bytes).first(piece.len * kSector);
    co_await get(overlay, overlay.read, piece, part);
    co_await put(overlay, piece, part);
    range = {piece.end(), range.len - piece.len};
  }
}

Task<> ImageIo::tell(const Extent& extent, Range range) {
  Promotion promotion;
  promotion.range = range;
  promotion.dest = extent.write.dest;
  promotion.dest_sector = extent.write.sector + (range.sector - extent.range.sector);
  promotion.seq = extent.is_volatile ? 0 : ++seq_;
  image_.promoted(promotion);
  uncommitted_ += extent.granule ? range.len / extent.granule : 1;
  if (extent.sync) co_await commit();
}

Task<> ImageIo::zero(Range range) {
  const std::vector<Answer> answers = co_await image_.zero(range);
  if (answers.empty()) co_return;
  const Buffer zeroes(std::min(range.len, kPiece) * kSector);
  while (range.len) {
    const Range piece{range.sector, std::min(range.len, kPiece)};
    co_await write(piece, std::span<const std::byte>(zeroes).first(piece.len * kSector));
    range = {piece.end(), range.len - piece.len};
  }
}

Task<> ImageIo::commit() {
  for (const Destination& each : destinations_)
    if (each.writable) co_await each.disk->flush();
  co_await image_.commit(seq_, true);
  uncommitted_ = 0;
}

}  // namespace cowd
