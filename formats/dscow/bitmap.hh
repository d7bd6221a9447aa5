// SPDX-License-Identifier: GPL-2.0-or-later
// Which granules of the disk are in the store: the two-level bitmap and its commit.
//
// States of a granule's bit
//   clear       the store has nothing; reads go to the base
//   waiting     promoted: the kernel has written its data, perhaps not durably
//   frozen      taken up by the commit under way
//   durable     on disk for good; it is never cleared again
//
// commit(seq), in this order:
//   1. Freeze. Promotions up to seq are taken up; newer ones wait for the next
//      commit, even if they come while this one is suspended.
//   2. Flush, unless the caller's FLUSH did that: data before mapping (D1).
//   3. Write the pages: what was on disk, and the frozen bits, in a copy that nothing
//      else touches. A page that the top does not know yet is written whole, of the
//      others the device blocks that change.
//   4. Flush, or, of one page, as part of its write. The frozen bits of pages that the top knew are durable now.
//   5. If pages are new: write the blocks of the top that name them, flush. Only
//      now does anybody read a new page, so what lay there before never counts.
//   6. The frozen promotions are forgotten; the caller may ACK.
// One flush for a FLUSH that needs no new page, two with new pages; one more each
// when cowd's timer commits.
//
// Why a crash or a failure at any point is harmless
//   - Bits are only added. A torn write of a page or of the top leaves some device
//     blocks old and some new; the old ones hold fewer bits, and every bit that is
//     being added has had its data flushed in step 2.
//   - A new page torn in step 3 is not in the top. If an earlier attempt at step 5 did
//     reach the top without our knowing, the page on disk is whole and from that
//     attempt; every bit in it and in what goes over it has had its data flushed.
//   - After a failure everything frozen waits again; nothing in memory says that it
//     is durable. The next commit writes those pages again even if they read back
//     as wanted: a device may drop what it could not flush and yet return it.
//
// Others at the same time: bits() is asked while a commit is suspended. It answers
// what is on disk or on its way there, plus frozen, plus waiting; the order of
// events cannot make it miss a promotion, see page_cache.hh for slow reads.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "formats/dscow/bits.hh"
#include "formats/dscow/layout.hh"
#include "formats/dscow/page_cache.hh"
#include "formats/dscow/uncommitted.hh"
#include "formats/plugin.hh"

namespace cowd::dscow {

// What the image asks; one for persistent stores, one for transient ones.
class Bits {
 public:
  virtual ~Bits() = default;
  // False: no bit of this page is set, bits() needs not be asked.
  virtual bool any(uint64_t page) const = 0;
  // The page, everything promoted included.
  virtual Task<PagePtr> bits(uint64_t page) = 0;
  // Granules [first, first + count) have been promoted.
  virtual void add(uint64_t first, uint64_t count, uint64_t seq) = 0;
  // Not re-entered. If it throws, nothing is lost and it may be repeated.
  virtual Task<> commit(uint64_t seq, bool data_flushed) = 0;
  virtual nlohmann::json stats() const = 0;
};

class DiskBits : public Bits {
 public:
  DiskBits(Disk& disk, const Geometry& geometry);
  // Reads the top. Before anything else but add().
  Task<> load();

  bool any(uint64_t page) const override { return exists(page) || uncommitted_.touches(page); }
  Task<PagePtr> bits(uint64_t page) override;
  void add(uint64_t first, uint64_t count, uint64_t seq) override {
    uncommitted_.add(first, count, seq);
  }
  Task<> commit(uint64_t seq, bool data_flushed) override;
  nlohmann::json stats() const override;

  bool exists(uint64_t page) const { return get_bit(top_, page); }

 private:
  Task<> write_pages();
  Task<> write_page(uint64_t page, const std::vector<Run>& runs, bool durably);
  Task<> publish_new_pages();

  Disk& disk_;
  const Geometry geometry_;
  Buffer top_;  // as it is durable
  PageCache cache_;
  Uncommitted uncommitted_;
  uint64_t commits_ = 0;
  uint64_t failed_commits_ = 0;
  uint64_t page_writes_ = 0;
  uint64_t top_writes_ = 0;
  uint64_t flushes_ = 0;
};

// A transient store's bits: in memory only, 4 KiB for each page written to.
class MemoryBits : public Bits {
 public:
  bool any(uint64_t page) const override { return pages_.count(page) != 0; }
  Task<PagePtr> bits(uint64_t page) override;
  void add(uint64_t first, uint64_t count, uint64_t seq) override;
  Task<> commit(uint64_t seq, bool data_flushed) override;
  nlohmann::json stats() const override;
  void copy_to(Bits& other) const;

 private:
  std::map<uint64_t, std::shared_ptr<Buffer>> pages_;
};

}  // namespace cowd::dscow
