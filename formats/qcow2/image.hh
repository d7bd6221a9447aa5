// SPDX-License-Identifier: GPL-2.0-or-later
// An open qcow2 image.
//
// What an L2 entry says of one by one is a granule: a cluster, or a subcluster where the entries
// are extended. Of each granule of the disk the image knows, in this order:
//   run       space given to the kernel for a first write (runs_): an overlay over what is read
//             there now, or, where that is not one linear place, a copy made here (`copied`)
//   promoted  told as promoted, and not durable yet (promoted_)
//   own       what we do to its cluster's entry with the next commit: a discard (own_)
//   entry     the L2 entry as it is on disk
//
// First writes: resolve() claims host clusters in memory alone (give.cc); promoted() notes what
// came there; commit() makes that durable up to a seq (commit.cc has the order). What was given
// and never promoted needs no undoing: nothing on disk knows of it.
//
// Where the data is in a file of its own, each cluster has its place there from the beginning,
// and only tables are in the image: nothing is claimed for data, and nothing counted.
//
// Locks, always in this order: give_ (who gives space, or takes it by a discard), commit_ (who
// writes metadata). Nothing that is read waits for either, save a copy under way.
//
// Memory: pages.hh has the cache's bound; the L1 table (at most 32 MiB); 100 bytes a run, of
// which kMaxRuns are kept before old ones are taken back; 80 bytes a promoted granule, whose number
// the kernel bounds; 80 bytes a discarded cluster, of which discard.cc has the bound; 50 bytes a
// cluster whose refcount is owed (kMaxOwed).
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cowd/core/semaphore.hh"
#include "formats/common/beneath.hh"
#include "formats/common/event.hh"
#include "formats/plugin.hh"
#include "formats/qcow2/layout.hh"
#include "formats/qcow2/pages.hh"
#include "formats/qcow2/refcounts.hh"

namespace cowd::qcow2 {

inline constexpr size_t kMaxRuns = 4096;

class Qcow2Image : public Image {
 public:
  // `data_file` and `beneath` may be null. `refcounts`: null if it is only read.
  Qcow2Image(OpenRequest request, std::unique_ptr<Header> header, std::shared_ptr<Disk> data_file,
             std::unique_ptr<Beneath> beneath, std::vector<uint64_t> l1);
  // Before anything else where it is written to.
  Task<> load_refcounts();
  Refcounts& refcounts() { return *refcounts_; }
  // How many overlays the kernel may keep; for tests.
  void keep_runs(size_t most) { max_runs_ = most; }

  uint64_t sectors() const override { return header_->size / kSector; }
  std::vector<Destination> destinations() const override;
  uint32_t discard_granularity() const override;
  std::vector<Answer> initial() const override { return {}; }
  Task<std::vector<Answer>> resolve(Range range, Access access) override;
  void promoted(const Promotion& promotion) override;
  Task<> commit(uint64_t seq, bool data_flushed) override;
  Task<std::vector<Answer>> discard(Range range) override;
  Task<std::vector<Answer>> zero(Range range) override;
  Task<std::vector<MapEntry>> map(Range range) override;
  Task<> preserve() override;
  Task<> pause() override;
  Task<> close() override;
  nlohmann::json stats() const override;
  uint64_t used_bytes() const override { return used_; }
  bool forgets_on_reattach() const override { return true; }

 private:
  // A host cluster that was claimed for several runs in it, and goes with the last of them.
  struct Home {
    uint64_t host = 0;   // sector
    bool named = false;  // data came there, so it stays
  };

  // Host space given for granules [first, first + count).
  struct Run {
    uint64_t first = 0;
    uint64_t count = 0;
    uint64_t host = 0;           // sector of the first granule
    Side read;                   // of an overlay
    uint64_t step = 1;           // granules that are promoted at once
    bool fresh = false;          // whole clusters were claimed for this run
    std::shared_ptr<Home> home;  // or this one; else they were the clusters' own before
    bool copied = false;         // no overlay: all of it is copied there by us
    bool filling = false;        // which is under way
    bool closing = false;        // being taken back from the kernel
    std::vector<bool> promoted;  // by step
    uint64_t left = 0;           // steps not promoted yet
    uint64_t end() const { return first + count; }
  };
  using RunPtr = std::shared_ptr<Run>;

  // Data that came to a granule; seq 0: not from the kernel.
  struct Promoted {
    uint64_t host = 0;  // bytes, of the cluster
    uint64_t seq = 0;
    bool operator==(const Promoted&) const = default;
  };

  // A piece of the disk that is in one place.
  struct Piece {
    enum class Kind : uint8_t { zero, data, beneath, compressed, given } kind = Kind::zero;
    Range range;
    uint64_t host = 0;       // sector, of data
    bool in_place = false;   // data that may be written where it is
    bool allocated = false;  // zeroes with a place kept for them
    bool here = true;        // zeroes that the image itself says
    uint64_t raw = 0;        // of compressed
    RunPtr run;              // of given
    bool operator==(const Piece&) const = default;
  };

  // What a granule needs before it is written to.
  struct Want {
    enum class How : uint8_t { none, overlay, cow, copy } how = How::none;
    bool whole = false;  // not without the rest of its cluster
    bool from_beneath = false;
    bool placed = false;         // has a place already, `host`
    uint64_t host = 0;           // sector, of the granule; of cow: from where
    std::shared_ptr<Home> home;  // of that place
  };

  struct Linked;  // commit.cc
  struct Table;   // commit.cc
  struct Change;  // commit.cc

  uint64_t cluster_sectors() const { return header_->cluster() / kSector; }
  uint64_t granule_sectors() const { return header_->granule() / kSector; }
  uint64_t per_cluster() const { return header_->granules_per_cluster(); }
  uint64_t granules() const { return (sectors() + granule_sectors() - 1) / granule_sectors(); }
  uint64_t granule_of(uint64_t sector) const { return sector / granule_sectors(); }
  // Granules, and clusters.
  Range sectors_of(uint64_t first, uint64_t count) const;
  Range sectors_of(const Run& run) const { return sectors_of(run.first, run.count); }
  Range cluster_at(uint64_t cluster) const {
    return sectors_of(cluster * per_cluster(), per_cluster());
  }
  bool is_cut(uint64_t first, uint64_t count) const;
  void require_within(Range range) const;
  void require_writable() const;
  Disk& data_disk() const { return data_file_ ? *data_file_ : *request_.top; }
  uint32_t data_dest() const { return data_file_ ? 1 : 0; }

  // image.cc: what is where
  uint64_t l2_offset(uint64_t cluster) const;  // of the table; 0: none
  uint64_t page_of(uint64_t cluster) const;    // offset of the page with its entry; 0: none
  uint64_t page_end(uint64_t cluster) const;   // first cluster that is on another page
  Task<> load(Range range);
  // What is where from the range's first sector on, and how far pieces() is to look again.
  struct Loaded {
    std::vector<Piece> pieces;
    uint64_t limit = 0;
  };
  Task<Loaded> load_run(Range range);
  std::optional<Link> on_disk(uint64_t cluster);
  std::optional<Link> before_promotions(uint64_t cluster);
  std::optional<Entry> lookup(uint64_t cluster);
  RunPtr run_at(uint64_t granule) const;
  std::vector<RunPtr> runs_in(uint64_t cluster) const;
  std::optional<Piece> piece_at(uint64_t sector);
  Piece piece_of(const Entry& entry, uint64_t sector) const;
  Piece subcluster_piece(const Entry& entry, uint64_t sector) const;
  Piece unallocated(Range range) const;
  void cut_at_end_of_file(Piece& piece) const;
  std::vector<Piece> pieces(Range range, uint64_t limit);
  static bool joins(const Piece& a, const Piece& b);

  // resolve.cc
  Extent extent_of(const Piece& piece) const;
  Extent extent_of(const Run& run) const;
  Bitmap bitmap_of(const Run& run) const;
  Task<std::vector<Answer>> resolve_read(Range range);
  Task<std::vector<Answer>> resolve_write(Range range);
  Task<std::vector<Answer>> leaf(Range range);
  void append(std::vector<Answer>& answers, const Piece& piece) const;
  Task<Data> bytes_of(Range range);
  Task<std::shared_ptr<const Buffer>> inflated(uint64_t cluster, uint64_t raw);
  Task<> read_piece(const Piece& piece, std::span<std::byte> out);
  Task<> read_range(Range range, std::span<std::byte> out);

  // give.cc
  Task<> give(uint64_t granule, uint64_t end_sector);
  Want want_of(uint64_t granule);
  Want want_of(const Entry& entry, uint64_t granule) const;
  bool alike(uint64_t a, const Want& first, uint64_t b);
  bool has_own(uint64_t granule) const;
  Task<RunPtr> place(uint64_t granule, uint64_t end_sector);
  void place_whole(Run& run, uint64_t limit);
  uint64_t clusters_around() const;
  Task<> place_overlay(Run& run, const Want& want, uint64_t granule, uint64_t start,
                       uint64_t limit);
  Task<> narrow_to_beneath(Run& run, uint64_t granule);
  void cut_front(Run& run, uint64_t first) const;
  Task<> claim(Run& run, const Want& want, uint64_t granule);
  void require_in_file(const Run& run, uint64_t host) const;
  Task<> claim_table(uint64_t cluster);
  Task<> fill(RunPtr run);
  void note_filled(const Run& run);
  void take_back(const RunPtr& run);
  Task<> retire();
  Task<> retire(const std::vector<RunPtr>& victims);
  Task<bool> take_back_unused();
  std::vector<RunPtr> choose_victims();
  Task<> retire(RunPtr run);

  // commit.cc
  bool is_ours(const Promotion& promotion) const;
  void mislead(Range range);
  void note_promoted(const RunPtr& run, uint64_t granule);
  Task<> commit_locked(uint64_t seq, bool data_flushed);
  Task<> commit_own();
  std::vector<Linked> freeze(uint64_t seq) const;
  Task<> commit_some(const std::vector<Linked>& some);
  Task<std::shared_ptr<Table>> prepare_table(uint64_t index);
  Task<> prepare_page(Table& table, uint64_t offset);
  void note_drops(Change& change, const Entry& old, uint64_t now);
  Task<> write_tables(Change& change);
  Task<> write_l1(const std::vector<uint64_t>& indices, const Change& change);
  void finish(const Change& change);
  Task<> lower();

  // discard.cc
  bool is_busy(uint64_t cluster) const;
  bool may_unmap(uint64_t granule) const;
  std::optional<Link> unmapped(uint64_t cluster, uint64_t first, uint64_t end, bool as_zero,
                               bool* all);
  std::optional<Link> unmapped(const Entry& entry, uint64_t cluster, Range part,
                               bool as_zero) const;
  Task<bool> unmap(uint64_t first, uint64_t end, bool as_zero);
  Task<std::vector<Answer>> pass_discard(Range range);

  const OpenRequest request_;
  const std::unique_ptr<Header> header_;
  const std::shared_ptr<Disk> data_file_;
  const std::unique_ptr<Beneath> beneath_;
  std::vector<uint64_t> l1_;
  Pages pages_;
  std::unique_ptr<Refcounts> refcounts_;
  const bool unmappable_;  // granules are smaller than blocks: all bytes go through us

  std::map<uint64_t, RunPtr> runs_;  // by first granule
  std::list<RunPtr> oldest_;         // overlays, as they were given
  size_t max_runs_ = kMaxRuns;
  std::map<uint64_t, Promoted> promoted_;    // by granule
  std::map<uint64_t, Link> own_;             // by cluster
  std::map<uint64_t, uint64_t> new_tables_;  // L1 index to the host cluster claimed for it
  std::map<uint64_t, Drop> drops_;           // of refcounts, once nothing names them
  std::list<std::pair<uint64_t, std::shared_ptr<const Buffer>>> inflated_;  // by raw entry
  AsyncSemaphore give_{1};
  AsyncSemaphore commit_{1};
  Event changed_;
  uint64_t next_sequential_ = UINT64_MAX;  // the granule with which a sequential writer goes on
  uint64_t ahead_ = 0;                     // bytes
  uint64_t unused_ = 0;                    // granules of whole clusters that were given
  uint64_t used_granules_ = 0;             // and those of them that were promoted
  bool is_tight_ = false;                  // there was no room but for what is asked for
  std::string misled_;  // what the kernel told that cannot be; then nothing is committed
  uint64_t used_ = 0;
  uint64_t commits_ = 0;
  bool adopting_ = true;  // nothing was asked yet: what is promoted, an earlier cowd gave
};

}  // namespace cowd::qcow2
