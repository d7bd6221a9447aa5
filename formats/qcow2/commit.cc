// SPDX-License-Identifier: GPL-2.0-or-later
// Promotions, and how they become durable. What must hold on disk at every moment:
//   - an L2 entry names a cluster only if its data is there and its refcount counts it;
//   - an L1 entry names a table only if that is written and counted;
//   - a refcount is lowered only when nothing names the cluster any more.
// Hence the order:
//   1. the data is flushed (the kernel has done so for a FLUSH)
//   2. refcounts of new clusters and new tables are raised; flush (refcounts.hh)
//   3. L2 entries, and new tables or copies of shared ones as a whole; flush
//   4. L1 entries of new tables; flush
//   5. refcounts of what was replaced are lowered. Not flushed: a crash leaves leaks.
// A crash anywhere before leaves leaks and no error. All of it is done for kBatchPages pages of
// tables at a time. A failure leaves promoted_ and own_ as they were, and the next commit begins
// again: raising what is raised already costs nothing.
//
// Of subclusters a commit sets the bits whose data its seq covers, and no others: the entry as
// it is on disk, or as own_ wants it, is what they are added to.
#include <algorithm>
#include <exception>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/parallel.hh"
#include "formats/qcow2/image.hh"

namespace cowd::qcow2 {
namespace {

constexpr size_t kBatchPages = 1024;  // 4 MiB

}  // namespace

// A cluster with what a commit does to its entry.
struct Qcow2Image::Linked {
  uint64_t cluster = 0;
  std::optional<Link> own;
  std::vector<std::pair<uint64_t, Promoted>> data;  // by granule
};

// An L2 table that a commit changes.
struct Qcow2Image::Table {
  uint64_t index = 0;   // in L1
  uint64_t offset = 0;  // where it will be
  bool moves = false;   // new, or a copy of one that a snapshot shares
  std::map<uint64_t, std::shared_ptr<Buffer>> pages;  // by offset of the page
};

struct Qcow2Image::Change {
  std::vector<Linked> linked;
  std::vector<std::shared_ptr<Table>> tables;
  std::vector<uint64_t> raised;      // host clusters
  std::map<uint64_t, Drop> dropped;  // the same
};

// --- promotions -------------------------------------------------------------------------

// The kernel may tell of a part of what was copied here: all of it is there.
void Qcow2Image::promoted(const Promotion& promotion) {
  const uint64_t first = granule_of(promotion.range.sector);
  const uint64_t end = granule_of(promotion.range.end() + granule_sectors() - 1);
  if (!is_ours(promotion)) {
    mislead(promotion.range);
    return;
  }
  // Where the cluster of the first granule is.
  const uint64_t host = promotion.dest_sector - promotion.range.sector % cluster_sectors();
  for (uint64_t granule = first; granule < end; granule++) {
    const uint64_t ahead = granule / per_cluster() - first / per_cluster();
    const uint64_t place = host + ahead * cluster_sectors();
    if (adopting_ && !data_file_) refcounts_->mark(place / cluster_sectors(), 1);
    if (const RunPtr run = run_at(granule)) {
      if (run->host + (granule - run->first) * granule_sectors() !=
          place + granule % per_cluster() * granule_sectors()) {
        mislead(promotion.range);
        return;
      }
      note_promoted(run, granule);
    }
    promoted_[granule] = {place * kSector, promotion.seq};
  }
}

// Whether it can be where the kernel says that it is.
bool Qcow2Image::is_ours(const Promotion& promotion) const {
  const Range range = promotion.range;
  if (request_.read_only || range.len == 0 || range.end() > sectors() ||
      promotion.dest != data_dest())
    return false;
  if (data_file_) return promotion.dest_sector == range.sector;
  const uint64_t skip = range.sector % cluster_sectors();
  const uint64_t count = (skip + range.len + cluster_sectors() - 1) / cluster_sectors();
  const uint64_t host = promotion.dest_sector - skip;
  return promotion.dest_sector > skip && host % cluster_sectors() == 0 &&
         host / cluster_sectors() + count <= request_.top->size() / header_->cluster();
}

void Qcow2Image::mislead(Range range) {
  misled_ = "sectors " + std::to_string(range.sector) + " to " + std::to_string(range.end());
}

void Qcow2Image::note_promoted(const RunPtr& run, uint64_t granule) {
  if (run->home) run->home->named = true;
  // Nothing asks for it again: it is promoted from here on.
  if (run->copied) {
    runs_.erase(run->first);
    return;
  }
  const uint64_t step = (granule - run->first) / run->step;
  if (run->promoted[step]) return;
  run->promoted[step] = true;
  run->left--;
  if (!run->fresh) return;
  unused_ -= run->step;
  used_granules_ += run->step;
}

// --- commits ----------------------------------------------------------------------------

Task<> Qcow2Image::commit(uint64_t seq, bool data_flushed) {
  if (request_.read_only) co_return;
  const AsyncSemaphore::Hold hold = co_await commit_.acquire();
  co_await commit_locked(seq, data_flushed);
}

// What is ours alone: the kernel waits for none of it.
Task<> Qcow2Image::commit_own() {
  const AsyncSemaphore::Hold hold = co_await commit_.acquire();
  co_await commit_locked(0, true);
}

Task<> Qcow2Image::commit_locked(uint64_t seq, bool data_flushed) {
  if (!misled_.empty())
    throw Error(EIO, request_.top->name() + ": the kernel said that " + misled_ +
                         " were written to a place that is not theirs. Nothing more is committed; "
                         "detach the disk and check the image ('cowctl check').");
  const std::vector<Linked> frozen = freeze(seq);
  const auto has_data = [](const Linked& each) { return !each.data.empty(); };
  if (!data_flushed && std::ranges::any_of(frozen, has_data)) co_await data_disk().flush();
  if (!frozen.empty()) commits_++;
  // By table, so that each is written in one batch, as far as it fits.
  for (size_t at = 0; at < frozen.size();) {
    std::vector<Linked> some;
    size_t pages = 0;
    uint64_t page_stop = 0, table = UINT64_MAX;
    for (; at < frozen.size(); at++) {
      const uint64_t cluster = frozen[at].cluster;
      const uint64_t index = cluster / header_->l2_entries();
      if (cluster >= page_stop) {
        const bool moves = !(l1_[index] & kOffsetMask) || !(l1_[index] & kCopied);
        const size_t more = moves ? header_->cluster() / pages_.table_bytes() : 1;
        const size_t cost = moves && index == table ? 0 : more;
        if (!some.empty() && pages + cost > kBatchPages) break;
        pages += cost;
        page_stop = page_end(cluster);
        table = index;
      }
      some.push_back(frozen[at]);
    }
    co_await commit_some(some);
  }
  try {
    co_await lower();
  } catch (const Error&) {
    // What is not lowered is a leak until the next commit, and no reason to fail this one.
  }
}

// What a commit up to seq is to link, by cluster.
std::vector<Qcow2Image::Linked> Qcow2Image::freeze(uint64_t seq) const {
  std::vector<Linked> frozen;
  auto own = own_.begin();
  const auto take_own = [&](uint64_t below) {
    for (; own != own_.end() && own->first < below; ++own)
      frozen.push_back({own->first, own->second, {}});
  };
  for (const auto& [granule, data] : promoted_) {
    if (data.seq > seq) continue;
    const uint64_t cluster = granule / per_cluster();
    take_own(cluster + 1);
    if (frozen.empty() || frozen.back().cluster != cluster)
      frozen.push_back({cluster, std::nullopt, {}});
    frozen.back().data.emplace_back(granule, data);
  }
  take_own(UINT64_MAX);
  return frozen;
}

Task<> Qcow2Image::commit_some(const std::vector<Linked>& some) {
  Change change;
  change.linked = some;
  const std::string& name = request_.top->name();
  for (const Linked& linked : some) {
    const uint64_t index = linked.cluster / header_->l2_entries();
    if (change.tables.empty() || change.tables.back()->index != index) {
      std::shared_ptr<Table> next = co_await prepare_table(index);
      change.tables.push_back(std::move(next));
    }
    Table& table = *change.tables.back();
    const uint64_t at = linked.cluster % header_->l2_entries() * header_->l2_entry_bytes();
    const uint64_t page = table.offset + round_down(at, pages_.table_bytes());
    if (!table.pages.count(page)) co_await prepare_page(table, page);
    Buffer& bytes = *table.pages.at(page);
    const Link before = load_link(*header_, bytes, at % pages_.table_bytes());
    Link next = linked.own.value_or(before);
    for (const auto& [granule, data] : linked.data)
      next = with_data(*header_, next, granule % per_cluster(), data.host);
    store_link(*header_, bytes, at % pages_.table_bytes(), next);
    const Entry old = decode(*header_, before, linked.cluster, name);
    note_drops(change, old, next.raw);
  }
  for (const auto& table : change.tables) {
    if (!table->moves) continue;
    change.raised.push_back(table->offset >> header_->cluster_bits);
    const uint64_t before = l1_[table->index] & kOffsetMask;
    if (before) change.dropped[before >> header_->cluster_bits].count++;
  }
  if (!change.raised.empty()) co_await refcounts_->raise(change.raised);
  co_await write_tables(change);
  finish(change);
}

// With all its pages if it moves.
Task<std::shared_ptr<Qcow2Image::Table>> Qcow2Image::prepare_table(uint64_t index) {
  auto table = std::make_shared<Table>();
  table->index = index;
  const uint64_t before = l1_[index] & kOffsetMask;
  table->offset = before;
  table->moves = !before || !(l1_[index] & kCopied);
  if (!table->moves) co_return table;
  co_await claim_table(index * header_->l2_entries());
  table->offset = new_tables_.at(index) << header_->cluster_bits;
  for (uint64_t at = 0; at < header_->cluster(); at += pages_.table_bytes()) {
    auto page = std::make_shared<Buffer>(pages_.table_bytes());
    if (before) {
      const PagePtr old = co_await pages_.get(before + at);
      *page = *old;
    }
    table->pages[table->offset + at] = page;
  }
  co_return table;
}

Task<> Qcow2Image::prepare_page(Table& table, uint64_t offset) {
  const PagePtr now = co_await pages_.get(offset);
  table.pages[offset] = std::make_shared<Buffer>(*now);
}

// What is raised and what is dropped where `now` takes the place of `old`.
void Qcow2Image::note_drops(Change& change, const Entry& old, uint64_t now) {
  if (data_file_) return;  // nothing there is counted
  const uint64_t host = now & kCompressed ? 0 : now & kOffsetMask;
  if (old.kind == Entry::Kind::compressed) {
    const CompressedPlace place = compressed_place(*header_, old.raw);
    const uint64_t last = (place.offset + place.bytes - 1) >> header_->cluster_bits;
    for (uint64_t at = place.offset >> header_->cluster_bits; at <= last; at++)
      change.dropped[at].count++;
  } else if (old.host && old.host != host) {
    Drop& drop = change.dropped[old.host >> header_->cluster_bits];
    drop.count++;
    // The kernel may still read there: it was told so, and nobody takes that back.
    drop.keep |= !old.copied && host;
  }
  if (host && (old.kind == Entry::Kind::compressed || old.host != host))
    change.raised.push_back(host >> header_->cluster_bits);
}

Task<> Qcow2Image::write_tables(Change& change) {
  Writes writes;
  std::vector<uint64_t> moved;
  for (const auto& table : change.tables) {
    writes.insert(writes.end(), table->pages.begin(), table->pages.end());
    if (table->moves) moved.push_back(table->index);
  }
  co_await write_durably(*request_.top, writes);
  if (!moved.empty()) co_await write_l1(moved, change);
}

Task<> Qcow2Image::write_l1(const std::vector<uint64_t>& indices, const Change& change) {
  std::vector<uint64_t> next = l1_;
  for (const auto& table : change.tables) next[table->index] = table->offset | kCopied;
  uint64_t written = UINT64_MAX;
  for (const uint64_t index : indices) {
    const uint64_t page = round_down(index * 8, pages_.table_bytes());
    if (page == written) continue;
    written = page;
    Buffer bytes(pages_.table_bytes());
    for (uint64_t at = 0; at < bytes.size() && (page + at) / 8 < next.size(); at += 8)
      store_be<uint64_t>(bytes, at, next[(page + at) / 8]);
    co_await request_.top->write_at(header_->l1_offset + page, bytes);
  }
  co_await request_.top->flush();
}

// All is durable. No suspension: whoever looks sees all of it or nothing.
void Qcow2Image::finish(const Change& change) {
  for (const auto& table : change.tables) {
    for (const auto& [offset, page] : table->pages) pages_.put(offset, page);
    if (!table->moves) continue;
    l1_[table->index] = table->offset | kCopied;
    new_tables_.erase(table->index);
    refcounts_->protect(table->offset >> header_->cluster_bits, 1);
  }
  for (const Linked& linked : change.linked) {
    const auto own = own_.find(linked.cluster);
    if (own != own_.end() && linked.own == own->second) own_.erase(own);
    for (const auto& [granule, data] : linked.data) {
      // Told again meanwhile: it is durable all the same.
      const auto found = promoted_.find(granule);
      if (found != promoted_.end() && found->second.host == data.host) promoted_.erase(found);
    }
  }
  for (const auto& [cluster, drop] : change.dropped) {
    drops_[cluster].count += drop.count;
    drops_[cluster].keep |= drop.keep;
  }
  // Compressed clusters lie where others may lie soon.
  if (!change.dropped.empty()) inflated_.clear();
}

Task<> Qcow2Image::lower() {
  for (const uint64_t cluster : refcounts_->superfluous()) drops_[cluster].count++;
  if (!drops_.empty()) co_await refcounts_->lower(drops_);
}

}  // namespace cowd::qcow2
