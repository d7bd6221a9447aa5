// SPDX-License-Identifier: GPL-2.0-or-later
// The refcounts of host clusters, and which of them are free.
//
// A cluster is in one of these states:
//   free      its refcount on disk is 0 and nobody claims it
//   claimed   given out in memory alone: after a crash it is free again
//   raised    its refcount on disk is 1 and durable: what names it may be written
//   owed      the same where the image allows lazy refcounts: its refcount is 1, and on disk it is
//             0, where the dirty bit says that refcounts are not up to date
// raise() is the only way from claimed to raised or owed, release() the way back to free; lower()
// is for what nothing on disk names any more. settle() writes what is owed, and clears the bit.
//
// Only what an existing refcount block describes is ever owed, so that whoever finds the dirty bit
// has no block to make: he would take a place for it that the kernel may have been given.
//
// A refcount block that is missing is claimed with the first cluster it is to describe, mostly
// as that cluster itself, so that it describes itself. raise() writes new blocks, flushes, and
// then names them in the refcount table. The table grows at most once while an image is
// open: the new one is large enough for all of the disk, and is written and flushed before the
// header names it; the clusters of the old one are to be lowered then (superfluous()).
//
// Failures: raise() may be called again with the same clusters and more; what it had written
// before is written again.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <unordered_set>
#include <utility>
#include <vector>

#include "formats/plugin.hh"
#include "formats/qcow2/claims.hh"
#include "formats/qcow2/layout.hh"
#include "formats/qcow2/pages.hh"

namespace cowd::qcow2 {

inline constexpr size_t kMaxOwed = 16384;

struct HostRun {
  uint64_t first = 0;  // cluster
  uint64_t count = 0;
};

// What is to be taken away from a refcount.
struct Drop {
  uint64_t count = 0;
  bool keep = false;  // not to be used again while the image is open, even if it becomes free
};

class Refcounts {
 public:
  // `header` is kept up to date when the table moves. All outlive this.
  Refcounts(Disk& disk, Header& header, Pages& pages)
      : disk_(disk), header_(header), pages_(pages) {}

  Task<> load();

  Task<uint64_t> get(uint64_t cluster);
  // At least one and at most `wanted` clusters that were free, in a row. Throws ENOSPC.
  Task<HostRun> claim(uint64_t wanted);
  // What the kernel says is in use, or what must not be used again.
  void mark(uint64_t first, uint64_t count) { claims_.add(first, count); }
  void release(uint64_t first, uint64_t count);
  // Throws EIO if one of them is ever found free: it holds a table.
  void protect(uint64_t first, uint64_t count);

  // Durable when it returns: refcount 1 for clusters that were claimed, or the dirty bit. What is
  // not owed is claimed no more.
  Task<> raise(std::vector<uint64_t> clusters);
  // Durable when it returns: all that was raised and lowered, and that this is so.
  Task<> settle();
  // Takes away what `drops` says, by cluster; not flushed. What was done is taken off `drops`.
  Task<> lower(std::map<uint64_t, Drop>& drops);
  // Clusters that raise() has made superfluous, to be lowered by one each.
  std::vector<uint64_t> superfluous() { return std::exchange(superfluous_, {}); }

  // The end of the last cluster with a refcount, in bytes.
  Task<uint64_t> used_end();
  uint64_t limit() const { return disk_.size() >> header_.cluster_bits; }
  uint64_t claimed() const { return claims_.count(); }
  uint64_t owed() const { return owed_.size(); }

 private:
  uint64_t per_block() const { return header_.refcounts_per_block(); }
  uint64_t per_page() const { return (pages_.table_bytes() * 8) >> header_.refcount_order; }
  bool on_disk(uint64_t block) const { return block < table_.size() && table_[block] != 0; }
  uint64_t page_offset(uint64_t cluster) const;
  Task<PagePtr> page_of(uint64_t cluster);
  Task<uint64_t> next_free(uint64_t cluster);
  uint64_t next_unclaimed(uint64_t cluster, uint64_t count) const;
  void place_block(uint64_t block, uint64_t at);
  void grow_table(uint64_t from);
  void require_room(uint64_t cluster) const;
  void require_unprotected(uint64_t first, uint64_t count) const;
  // What raise() makes part of the image: as it was when it began, for claims go on meanwhile.
  struct Growth {
    std::map<uint64_t, uint64_t> blocks;
    std::optional<HostRun> table;
  };
  bool lazy() const { return header_.version >= 3 && header_.compatible & kLazyRefcounts; }
  Task<> set_dirty(bool dirty);
  Task<> owe(const std::vector<uint64_t>& clusters);
  Task<> pay();
  Task<> write_blocks(const std::vector<uint64_t>& clusters, const Growth& growth);
  Task<> write_table(const Growth& growth);
  void freed(uint64_t cluster, const Drop& drop);
  std::vector<std::byte> table_bytes(const Growth& growth) const;

  Disk& disk_;
  Header& header_;
  Pages& pages_;
  std::vector<uint64_t> table_;  // offsets of blocks; 0: none. Grown, but as on disk else
  std::map<uint64_t, uint64_t> new_blocks_;  // index to host cluster, not on disk yet
  std::optional<HostRun> new_table_;
  Claims claims_;           // what is owed is claimed, too
  std::set<uint64_t> owed_;  // kMaxOwed at most
  std::unordered_set<uint64_t> protected_;
  std::vector<uint64_t> superfluous_;
  uint64_t hint_ = 0;  // nothing is free before it
};

}  // namespace cowd::qcow2
