// SPDX-License-Identifier: GPL-2.0-or-later
// The two levels of tables of a qcow image. An entry is the offset of a table or a cluster; 0:
// there is none; with its highest bit set, a cluster is compressed (RFC 1951) and the bits
// below say how long it is. Nothing is counted and nothing is ever freed.
//
// A commit writes changed tables and whole new ones, flushes, and then the entries of the first
// level that name the new ones. New tables come behind the clusters, from the same space.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "formats/common/sparse_bits.hh"
#include "formats/common/table_cache.hh"
#include "formats/growing/space.hh"
#include "formats/growing/tables.hh"
#include "formats/growing/taken.hh"
#include "formats/qcow/header.hh"

namespace cowd::qcow {

class Clusters : public growing::Tables {
 public:
  Clusters(Disk& top, const Header& header, uint64_t cache_bytes = kMetadataCache);
  // Reads the first level. Throws where it leads out of the file.
  Task<> load();

  uint64_t sectors() const override { return header_.size / kSector; }
  uint32_t block_sectors() const override {
    return static_cast<uint32_t>(header_.cluster() / kSector);
  }
  Task<std::vector<growing::Piece>> find(Range range) override;
  Task<> unpack(uint64_t block, std::span<std::byte> out) override;
  Task<> link(std::span<const growing::Link> links) override;
  Task<> finish(std::span<const uint64_t> ends) override;
  uint64_t used_bytes() const override { return used_bytes_; }
  nlohmann::json stats() const override;

  struct Use {
    uint64_t end = 0;       // bytes
    uint64_t clusters = 0;  // that have a place
    uint64_t tables = 0;
    bool aligned = true;      // all clusters that are not compressed, to their size
    growing::Taken taken;     // clusters of the file up to `end`
    SparseBits packed;        // those that have nothing but compressed clusters, which share
    std::vector<std::string> errors;
  };
  // Reads all tables. entries: no more than that; overlaps: also complains of what lies on
  // something else, for it would be written over.
  enum class Look { entries, overlaps };
  Task<Use> used(Look look, const Progress& progress = nullptr);
  // The room behind all that is used, and the holes between tables and clusters.
  std::shared_ptr<growing::Space> space(const Use& use) const;

  // For link(): where new tables come from.
  void grow_in(std::shared_ptr<growing::Space> space) { space_ = std::move(space); }

 private:
  Task<uint64_t> write_table(uint64_t index, std::span<const growing::Link> links);
  Task<> write_new_table(uint64_t index, std::span<const growing::Link> links);
  Task<> write_first_level(const std::map<uint64_t, uint64_t>& tables);
  void check_entry(uint64_t cluster, uint64_t entry, Look look, Use& use) const;
  struct Room {
    uint64_t offset, bytes;
    bool packed = false;
  };
  bool take(const Room& room, const std::string& what, Look look, Use& use) const;

  Disk& top_;
  const Header header_;
  std::vector<uint64_t> first_level_;
  TableCache cache_;
  std::shared_ptr<growing::Space> space_;
  std::map<uint64_t, uint64_t> new_tables_;  // placed, perhaps written, not named yet
  uint64_t used_bytes_ = 0;
};

}  // namespace cowd::qcow
