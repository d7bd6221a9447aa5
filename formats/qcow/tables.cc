// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/qcow/tables.hh"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/inflate.hh"

namespace cowd::qcow {
namespace {

using growing::Link;
using growing::Piece;
using growing::Space;
using growing::Where;

constexpr size_t kMaxErrors = 100;
constexpr uint64_t kMaxPlaces = 1 << 28;  // looked after: 32 MiB of bits, 1 TiB of small clusters

struct PackedPlace {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

PackedPlace packed_place(const Header& header, uint64_t entry) {
  const uint32_t shift = 63 - header.cluster_bits;
  return {entry & ((1ULL << shift) - 1), entry >> shift & (header.cluster() - 1)};
}

}  // namespace

Clusters::Clusters(Disk& top, const Header& header, uint64_t cache_bytes)
    : top_(top), header_(header), cache_(top, header.table_bytes(), cache_bytes) {}

Task<> Clusters::load() {
  Buffer bytes(header_.tables() * 8);
  co_await read_any(top_, header_.first_level, bytes);
  first_level_.clear();
  for (uint64_t i = 0; i < header_.tables(); i++) {
    const auto at = load_be<uint64_t>(bytes, i * 8);
    if (at != 0 && (at % kSector != 0 || at >= top_.size() ||
                    header_.table_bytes() > round_up(top_.size(), header_.cluster()) - at))
      throw Error(EINVAL, top_.name() + ", a qcow image, is damaged: second-level table " +
                              std::to_string(i) + " is at " + std::to_string(at) +
                              ", and the file has " + std::to_string(top_.size()) +
                              " bytes. If it was cut off, copy it again.");
    first_level_.push_back(at);
  }
}

Task<std::vector<Piece>> Clusters::find(Range range) {
  std::vector<Piece> pieces;
  const uint64_t per_table = header_.entries() * block_sectors();
  const uint64_t index = range.sector / per_table;
  const uint64_t table_end = std::min((index + 1) * per_table, sectors());
  if (first_level_[index] == 0) {
    uint64_t end = index + 1;
    while (end < first_level_.size() && first_level_[end] == 0) end++;
    const uint64_t stop = std::min(end * per_table, sectors());
    pieces.push_back({{range.sector, stop - range.sector}, Where::beneath});
    co_return pieces;
  }
  const TablePtr table = co_await cache_.get(first_level_[index]);
  for (uint64_t sector = range.sector; sector < table_end;) {
    const uint64_t cluster = sector / block_sectors();
    const uint64_t end = std::min((cluster + 1) * block_sectors(), table_end);
    const auto entry = load_be<uint64_t>(*table, (cluster & (header_.entries() - 1)) * 8);
    Piece piece;
    piece.range = {sector, end - sector};
    if (entry & kPacked) {
      piece.where = Where::packed;
    } else if (entry != 0) {
      piece.where = Where::here;
      piece.sector = entry / kSector + sector % block_sectors();
      const uint64_t file = top_.size() / kSector;
      if (entry % kSector != 0 || piece.sector >= file)
        throw Error(EIO, top_.name() + ", a qcow image, is damaged: cluster " +
                             std::to_string(cluster) + " is at " + std::to_string(entry) +
                             ", and the file has " + std::to_string(top_.size()) +
                             " bytes. If it was cut off, copy it again.");
      // A file may end within its last cluster; what is not there is zeroes.
      if (piece.sector + piece.range.len > file) {
        piece.range.len = file - piece.sector;
        pieces.push_back(piece);
        piece = {{piece.range.end(), end - piece.range.end()}, Where::zero};
      }
    }
    pieces.push_back(piece);
    sector = end;
  }
  co_return pieces;
}

Task<> Clusters::unpack(uint64_t block, std::span<std::byte> out) {
  const TablePtr table = co_await cache_.get(first_level_[block >> header_.table_bits]);
  const auto entry = load_be<uint64_t>(*table, (block & (header_.entries() - 1)) * 8);
  const PackedPlace place = packed_place(header_, entry);
  Buffer packed(place.bytes);
  co_await read_any(top_, place.offset, packed);
  if (!inflate_into(packed, out, Wrapping::none))
    throw Error(EIO, top_.name() + ", a qcow image, is damaged: the compressed cluster " +
                         std::to_string(block) + " cannot be read. Copy the image again.");
}

Task<> Clusters::link(std::span<const Link> links) {
  std::map<uint64_t, uint64_t> named;
  for (size_t i = 0; i < links.size();) {
    const uint64_t index = links[i].block >> header_.table_bits;
    size_t end = i;
    while (end < links.size() && links[end].block >> header_.table_bits == index) end++;
    const std::span<const Link> own = links.subspan(i, end - i);
    if (first_level_[index] != 0) {
      co_await write_table(index, own);
    } else {
      co_await write_new_table(index, own);
      named[index] = new_tables_.at(index);
    }
    i = end;
  }
  if (named.empty()) co_return;
  co_await top_.flush();
  co_await write_first_level(named);
}

// Whole sectors from the first to the last that change.
Task<uint64_t> Clusters::write_table(uint64_t index, std::span<const Link> links) {
  const uint64_t at = first_level_[index];
  const TablePtr old = co_await cache_.get(at);
  auto changed = std::make_shared<Buffer>(*old);
  for (const Link& each : links)
    store_be<uint64_t>(*changed, (each.block & (header_.entries() - 1)) * 8, each.sector * kSector);
  const uint64_t mask = header_.entries() - 1;
  const uint64_t begin = round_down((links.front().block & mask) * 8, kSector);
  const uint64_t end =
      std::min(round_up((links.back().block & mask) * 8 + 8, kSector), header_.table_bytes());
  const auto part = std::span<const std::byte>(*changed).subspan(begin, end - begin);
  co_await write_any(top_, at + begin, part);
  cache_.put(at, std::move(changed));
  co_return at;
}

// In the place that an attempt before this one has given it, if there was one.
Task<> Clusters::write_new_table(uint64_t index, std::span<const Link> links) {
  if (!new_tables_.contains(index)) {
    const uint64_t bytes = round_up(header_.table_bytes(), header_.cluster());
    const auto sector = space_->take(bytes / kSector, block_sectors());
    if (!sector)
      throw Error(ENOSPC, top_.name() + " has no room for another table: it has " +
                              std::to_string(top_.size()) + " bytes. Make it larger.");
    new_tables_[index] = *sector * kSector;
  }
  auto table = std::make_shared<Buffer>(header_.table_bytes());
  for (const Link& each : links)
    store_be<uint64_t>(*table, (each.block & (header_.entries() - 1)) * 8, each.sector * kSector);
  co_await write_any(top_, new_tables_.at(index), *table);
  cache_.put(new_tables_.at(index), std::move(table));
}

Task<> Clusters::write_first_level(const std::map<uint64_t, uint64_t>& tables) {
  for (const auto& [index, offset] : tables) {
    Buffer entry(8);
    store_be<uint64_t>(entry, 0, offset);
    co_await write_any(top_, header_.first_level + index * 8, entry);
  }
  // The engine looks at its own list first until the last flush: this may come too early.
  for (const auto& [index, offset] : tables) {
    first_level_[index] = offset;
    new_tables_.erase(index);
  }
}

Task<> Clusters::finish(std::span<const uint64_t> ends) {
  used_bytes_ = ends.front() * kSector;
  co_return;
}

nlohmann::json Clusters::stats() const {
  return {{"cluster", header_.cluster()},
          {"tables_cached", cache_.size()},
          {"table_reads", cache_.reads()}};
}

Task<Clusters::Use> Clusters::used(Look look, const Progress& progress) {
  Use use;
  take({0, header_.first_level_end()}, "The header", look, use);
  // Before that end it is where nothing is given away.
  const uint64_t behind = round_up(header_.first_level_end(), header_.cluster());
  if (header_.has_backing() && header_.backing_end() > behind) {
    const uint64_t begin = std::max(header_.backing_offset, behind);
    take({begin, header_.backing_end() - begin}, "The backing file's name", look, use);
  }
  for (uint64_t index = 0; index < first_level_.size(); index++) {
    if (first_level_[index] == 0) continue;
    use.tables++;
    // One that is there twice is not read twice: they may all be the same.
    if (!take({first_level_[index], header_.table_bytes()},
              "Second-level table " + std::to_string(index), Look::overlaps, use))
      continue;
    Buffer table(header_.table_bytes());
    co_await read_any(top_, first_level_[index], table);
    const uint64_t first = index << header_.table_bits;
    for (uint64_t i = 0; i < header_.entries() && first + i < header_.clusters(); i++)
      if (const auto entry = load_be<uint64_t>(table, i * 8); entry != 0)
        check_entry(first + i, entry, look, use);
    if (progress) progress(index + 1, first_level_.size());
  }
  co_return use;
}

void Clusters::check_entry(uint64_t cluster, uint64_t entry, Look look, Use& use) const {
  use.clusters++;
  const std::string what = "Cluster " + std::to_string(cluster);
  if (entry & kPacked) {
    const PackedPlace place = packed_place(header_, entry);
    take({place.offset, place.bytes, true}, what, look, use);
    return;
  }
  if (entry % header_.cluster() != 0) use.aligned = false;
  take({entry, header_.cluster()}, what, look, use);
}

// Whether it can be there, and nothing else is.
bool Clusters::take(const Room& room, const std::string& what, Look look, Use& use) const {
  const uint64_t offset = room.offset, bytes = room.bytes;
  const auto tell = [&](const std::string& problem) {
    if (use.errors.size() < kMaxErrors)
      use.errors.push_back(what + " at " + std::to_string(offset) + " of " + top_.name() + " " +
                           problem + ".");
    return false;
  };
  if (offset >= top_.size()) return tell("is not in the file");
  use.end = std::max(use.end, offset + std::max<uint64_t>(bytes, 1));
  if (look == Look::entries) return true;
  const uint64_t first = offset >> header_.cluster_bits;
  const uint64_t last = (offset + std::max<uint64_t>(bytes, 1) - 1) >> header_.cluster_bits;
  const uint64_t end = std::min(last + 1, kMaxPlaces);
  bool twice = false;
  for (uint64_t at = use.taken.next_taken(first, end); at < end && !twice;
       at = use.taken.next_taken(at + 1, end))
    twice = !room.packed || !use.packed.get(at);
  for (uint64_t at = first; room.packed && at < end; at++)
    if (!use.taken.get(at)) use.packed.set(at);
  use.taken.set(first, end);
  return twice ? tell("lies on something else") : true;
}

// Behind the first level only: what programs that we do not know add to the header is before.
std::shared_ptr<Space> Clusters::space(const Use& use) const {
  const uint64_t end = round_up(use.end, header_.cluster()) / kSector;
  auto space = std::make_shared<Space>(end, top_.size() / kSector);
  const uint64_t places = std::min<uint64_t>(use.end / header_.cluster(), kMaxPlaces);
  uint64_t at = round_up(header_.first_level_end(), header_.cluster()) >> header_.cluster_bits;
  while ((at = use.taken.next_free(at, places)) < places) {
    const uint64_t behind = use.taken.next_taken(at, places);
    space->add_hole(at * block_sectors(), behind * block_sectors());
    at = behind;
  }
  return space;
}

}  // namespace cowd::qcow
