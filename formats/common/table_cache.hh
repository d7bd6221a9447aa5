// SPDX-License-Identifier: GPL-2.0-or-later
// Tables of one size as they were last read or written, the least recently used forgotten
// first. Bounded by bytes.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <unordered_map>
#include <utility>

#include "formats/common/bytes.hh"
#include "formats/plugin.hh"

namespace cowd {

using TablePtr = std::shared_ptr<const Buffer>;

class TableCache {
 public:
  TableCache(Disk& disk, uint64_t table_bytes, uint64_t most_bytes = kMetadataCache);

  // Reads the table at `offset` if need be. If put() gives it a new content meanwhile, it is
  // that one: a slow read never brings back what a commit has overtaken.
  Task<TablePtr> get(uint64_t offset);
  // Without I/O; null if it is not in memory.
  TablePtr peek(uint64_t offset);
  // What has been written there.
  void put(uint64_t offset, TablePtr table);
  // The place has become something else.
  void forget(uint64_t offset, uint64_t length);

  uint64_t table_bytes() const { return table_bytes_; }
  size_t size() const { return order_.size(); }
  uint64_t reads() const { return reads_; }

 private:
  struct Load {
    uint64_t offset;
    TablePtr newer;
  };
  using Entry = std::pair<uint64_t, TablePtr>;

  Disk& disk_;
  const uint64_t table_bytes_;
  const size_t most_;
  std::list<Entry> order_;  // most recently used first
  std::unordered_map<uint64_t, std::list<Entry>::iterator> index_;
  std::list<Load> loads_;  // under way
  uint64_t reads_ = 0;
};

}  // namespace cowd
