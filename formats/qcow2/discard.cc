// SPDX-License-Identifier: GPL-2.0-or-later
// Discards and zeroes: whole granules are unmapped, what is cut is left to whoever writes.
//
// Order: the granules are own_ as unmapped from the first moment, so that nobody is told of
// the old place any more; then the kernel drops what it was told before, and all I/O there
// ends; only then may a commit take the place back (it waits, as commit_ is held). A discard
// is committed with whatever comes next; zeroes are durable before they are acknowledged, for the
// kernel asks for no commit after them.
//
// A cluster of subclusters keeps its place until all of it is unmapped at once.
//
// Left alone: granules under an overlay, which the kernel serves, and granules whose promotion no
// commit has covered: a cowd that is started again would be told of them once more.
//
// In a data file places are not given back: a discard goes on to the file, whose file system
// takes the room. Where that file is to be a raw image zeroes are written to it as data.
#include <algorithm>
#include <exception>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/qcow2/image.hh"

namespace cowd::qcow2 {
namespace {

constexpr size_t kManyUnmapped = 1024;  // clusters: they cost memory until a commit

}  // namespace

// Somebody else counts on the place that it has.
bool Qcow2Image::is_busy(uint64_t cluster) const {
  const uint64_t first = cluster * per_cluster();
  const auto data = promoted_.lower_bound(first);
  return (data != promoted_.end() && data->first < first + per_cluster()) ||
         !runs_in(cluster).empty();
}

// What the entry is to be when granules `part` of its cluster are unmapped; nothing if it cannot
// be done.
std::optional<Link> Qcow2Image::unmapped(const Entry& entry, uint64_t cluster, Range part,
                                         bool as_zero) const {
  const Range all{0, std::min(per_cluster(), granules() - cluster * per_cluster())};
  const bool whole = part == all && !is_busy(cluster);
  if (entry.kind == Entry::Kind::compressed && !whole) return std::nullopt;
  Link next{whole ? 0 : entry.raw, entry.bitmap};
  for (uint64_t at = part.sector; at < part.end(); at++) {
    // Without anything beneath, nothing is zeroes; and a discard of nothing lets it be seen.
    const bool nothing = kind_of(*header_, entry, at) == Entry::Kind::none;
    const bool flag = beneath_ && (as_zero || !nothing);
    if (!header_->extended()) {
      next.raw = flag ? kZero : 0;
      continue;
    }
    next.bitmap &= ~(uint64_t{1} << at | uint64_t{1} << (kSubclusters + at));
    if (flag) next.bitmap |= uint64_t{1} << (kSubclusters + at);
  }
  // Beyond the end of the disk.
  if (whole) next.bitmap &= ~kAllAllocated;
  return next;
}

// What has been copied here and is not committed yet stays, too.
bool Qcow2Image::may_unmap(uint64_t granule) const {
  return !run_at(granule) && !promoted_.contains(granule);
}

// The entry without those of granules [first, end) of a cluster that may be unmapped; nothing if
// it stays as it is. `all` becomes false if others are left.
std::optional<Link> Qcow2Image::unmapped(uint64_t cluster, uint64_t first, uint64_t end,
                                         bool as_zero, bool* all) {
  const std::optional<Link> before = before_promotions(cluster);
  std::optional<Link> link = before;
  const uint64_t start = cluster * per_cluster();
  for (uint64_t at = first; at < end;) {
    if (!link || !may_unmap(at)) {
      *all = false;
      at++;
      continue;
    }
    const uint64_t from = at;
    while (at < end && may_unmap(at)) at++;
    const Entry entry = decode(*header_, *link, cluster, request_.top->name());
    if (const auto next = unmapped(entry, cluster, {from - start, at - from}, as_zero))
      link = next;
    else
      *all = false;
  }
  return link == before ? std::nullopt : link;
}

// Granules [first, end), on one page of a table. True if all of them read as zeroes now.
Task<bool> Qcow2Image::unmap(uint64_t first, uint64_t end, bool as_zero) {
  const AsyncSemaphore::Hold hold = co_await commit_.acquire();
  co_await load(sectors_of(first, end - first));
  bool all = true;
  std::map<uint64_t, Link> changes, before;
  for (uint64_t at = first; at < end;) {
    const uint64_t cluster = at / per_cluster();
    const uint64_t stop = std::min(end, (cluster + 1) * per_cluster());
    if (const auto next = unmapped(cluster, at, stop, as_zero, &all)) changes[cluster] = *next;
    if (const auto own = own_.find(cluster); own != own_.end()) before[cluster] = own->second;
    at = stop;
  }
  // Zeroes are for all of the range or for none of it.
  if (as_zero && !all) co_return false;
  if (changes.empty()) co_return all;
  for (const auto& [cluster, link] : changes) own_[cluster] = link;
  std::exception_ptr failure;
  const uint64_t from = changes.begin()->first * per_cluster();
  const uint64_t to = (changes.rbegin()->first + 1) * per_cluster();
  try {
    if (request_.invalidate) co_await request_.invalidate(sectors_of(from, to - from));
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return all;
  // Somebody may still write to the old place: it stays theirs.
  for (const auto& [cluster, link] : changes) {
    const auto found = own_.find(cluster);
    if (found == own_.end() || found->second != link) continue;
    own_.erase(found);
    if (before.count(cluster)) own_[cluster] = before.at(cluster);
  }
  std::rethrow_exception(failure);
}

Task<std::vector<Answer>> Qcow2Image::discard(Range range) {
  require_within(range);
  adopting_ = false;
  require_writable();
  if (data_file_) co_return co_await pass_discard(range);
  const uint64_t first = granule_of(range.sector + granule_sectors() - 1);
  const uint64_t end = range.end() == sectors() ? granules() : granule_of(range.end());
  // Without a zero flag what is beneath would be seen again.
  if (header_->version == 2 && beneath_) co_return std::vector<Answer>{};
  for (uint64_t at = first; at < end;) {
    const uint64_t stop = std::min(end, page_end(at / per_cluster()) * per_cluster());
    {
      const AsyncSemaphore::Hold hold = co_await give_.acquire();
      co_await unmap(at, stop, false);
    }
    if (own_.size() > kManyUnmapped) co_await commit_own();
    at = stop;
  }
  co_return std::vector<Answer>{};
}

// The kernel sends it where it is told to. What has no place of its own needs none.
Task<std::vector<Answer>> Qcow2Image::pass_discard(Range range) {
  std::vector<Piece> found;
  while (found.empty()) {
    Loaded loaded = co_await load_run(range);
    found = std::move(loaded.pieces);
  }
  std::vector<Answer> answers;
  if (found[0].in_place) append(answers, found[0]);
  co_return answers;
}

Task<std::vector<Answer>> Qcow2Image::zero(Range range) {
  require_within(range);
  adopting_ = false;
  require_writable();
  const bool whole = range.sector % granule_sectors() == 0 &&
                     (range.end() % granule_sectors() == 0 || range.end() == sectors());
  const bool has_flag = header_->version > 2 || !beneath_;
  bool all = whole && has_flag && !(header_->autoclear & kRawExternal);
  const uint64_t end = granule_of(range.end() + granule_sectors() - 1);
  for (uint64_t at = granule_of(range.sector); all && at < end;) {
    const uint64_t stop = std::min(end, page_end(at / per_cluster()) * per_cluster());
    const AsyncSemaphore::Hold hold = co_await give_.acquire();
    all = co_await unmap(at, stop, true);
    at = stop;
  }
  if (!all) co_return co_await resolve_write(range);
  co_await commit_own();
  co_return std::vector<Answer>{};
}

}  // namespace cowd::qcow2
