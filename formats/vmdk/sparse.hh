// SPDX-License-Identifier: GPL-2.0-or-later
// One sparse extent of a VMDK. "Virtual Disk Format 5.0", "Hosted Sparse Extents" and
// "Compressed..."; and the older one of ESX, whose header begins with COWD. All integers are
// little endian; offsets are sectors of the file.
//
//   directory: one entry a table; table: one entry a grain
//   entry 0: nothing, or the parent; 1, where the header allows it: zeroes; else: the grain
//
// A hosted extent has its directory and tables twice. A commit writes both; a crash leaves them
// different at most in entries whose grains are there, which check() tells and repairs. A place
// that either of them has is not given to another grain.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "formats/common/table_cache.hh"
#include "formats/growing/space.hh"
#include "formats/growing/tables.hh"
#include "formats/growing/taken.hh"
#include "formats/vmdk/places.hh"

namespace cowd::vmdk {

inline constexpr uint64_t kSector = 512;
inline constexpr uint64_t kDefaultGrain = 128;    // sectors
inline constexpr uint32_t kDefaultEntries = 512;  // of a table

struct SparseHeader {
  enum Flag : uint32_t {
    newlines = 1,
    redundant = 2,
    zero_grains = 4,
    compressed = 1 << 16,
    markers = 1 << 17
  };
  bool cowd = false;
  uint32_t version = 1;
  uint32_t flags = newlines | redundant;
  uint64_t capacity = 0;  // sectors
  uint64_t grain = kDefaultGrain;
  uint64_t descriptor = 0;
  uint64_t descriptor_sectors = 0;
  uint32_t entries = kDefaultEntries;
  uint64_t redundant_directory = 0;
  uint64_t directory = 0;
  uint64_t overhead = 0;  // sectors before the first grain
  bool unclean = false;
  uint16_t compression = 0;

  bool has(Flag flag) const { return flags & flag; }
  uint64_t table_bytes() const { return uint64_t{entries} * 4; }
  uint64_t table_sectors() const { return (table_bytes() + kSector - 1) / kSector; }
  uint64_t per_table() const { return grain * entries; }  // sectors of the disk
  uint64_t tables() const { return (capacity + per_table() - 1) / per_table(); }
};

bool is_sparse(std::span<const std::byte> head);
// Of a stream, the copy at the end that knows where the directory is. Throws EINVAL.
Task<SparseHeader> read_sparse_header(Disk& disk);
void encode(const SparseHeader& header, std::span<std::byte> out);
inline constexpr uint64_t kUncleanAt = 72;  // bytes into the header

// How many bytes a file that is one extent may come to need.
Task<uint64_t> room_of_extent(std::shared_ptr<Disk> disk);

class SparseExtent {
 public:
  // `first`: where it begins in the disk.
  SparseExtent(Disk& disk, uint32_t dest, uint64_t first, const SparseHeader& header,
               uint64_t cache_bytes);
  // Reads the directories. Throws where they lead out of the file.
  Task<> load();

  // Pieces of [sector, sector + len) of the extent, in sectors of the disk; at least one, and
  // not beyond a table.
  Task<> find(uint64_t sector, uint64_t len, std::vector<growing::Piece>& pieces);
  Task<> unpack(uint64_t sector, std::span<std::byte> out);
  // Writes the entries, in both tables. Grains are counted within the extent.
  Task<> link(std::span<const growing::Link> links);

  // Why it cannot be written to; empty: it can.
  std::string no_writing() const;
  struct Use {
    explicit Use(uint64_t grain) : places(grain) {}
    uint64_t end = 0;     // the sector behind all that it uses
    uint64_t grains = 0;  // that have a place
    bool aligned = true;  // all of them, to the blocks of the disk
    std::vector<std::string> errors;
    uint64_t different = 0;  // tables of which the redundant one says something else
    // A bit for each place of a grain: something lies there, for one of the two tables.
    growing::Taken taken;
    Places places;
  };
  Task<Use> used(bool repair = false);
  // The room behind all that is used, and the holes before that. Throws where something is wrong.
  Task<std::shared_ptr<growing::Space>> space();

  const SparseHeader& header() const { return header_; }
  uint64_t reads() const { return cache_.reads(); }
  size_t cached() const { return cache_.size(); }

 private:
  Task<TablePtr> table(uint64_t index);
  bool is_place(uint32_t entry) const;
  uint64_t place_count() const;
  void take_tables(Use& use) const;
  void take(uint64_t first, uint64_t sectors, Use& use) const;
  Task<> check_table(uint64_t index, Use& use, bool repair);
  void check_entry(uint64_t grain, uint32_t entry, Use& use) const;

  Disk& disk_;
  const uint32_t dest_;
  const uint64_t first_;
  const SparseHeader header_;
  std::vector<uint32_t> directory_;
  std::vector<uint32_t> redundant_;  // empty: there is none
  TableCache cache_;
};

}  // namespace cowd::vmdk
