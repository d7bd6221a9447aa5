// SPDX-License-Identifier: GPL-2.0-or-later
// Space for first writes, in memory alone: refcounts on disk follow with the commit.
//
// A run is as long as what was asked for, and longer for a writer that goes on where the last
// run ended: twice as much each time, up to kMaxAhead. For one that does not, a run is also what
// lies around, as long as no more was given in vain than was used: who writes all over a region
// asks less often, and what is spread thinly has at most twice the room that it takes, in memory
// alone. When there is no other room, what is not used is taken back.
// All granules of a run are alike: read from one linear place, or zeroes. What is not so is
// copied here:
//   a granule that the end of the disk cuts, or that lies on the edge of two extents of what is
//   beneath; a whole cluster that is compressed, or that a snapshot shares and that has
//   subclusters which are elsewhere (for all of it moves at once).
//
// Subclusters: a new cluster is given from its beginning to its end if all of it is read from
// one place. Else what is alike becomes a run, and the cluster is the runs' home, which the last
// of them gives back if nothing came there. In a cluster that has a place already each run is
// given that place. So that an entry which names another place than the one on disk always
// means that all was copied (with_data()), a discard in the cluster is committed first.
#include <algorithm>
#include <bit>
#include <exception>
#include <functional>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/parallel.hh"
#include "formats/qcow2/image.hh"

namespace cowd::qcow2 {
namespace {

constexpr uint64_t kFirstAhead = 64 << 10;
constexpr uint64_t kMaxAhead = 4 << 20;
constexpr uint64_t kMaxRun = 32768;  // granules: one leaf of the kernel's bits
constexpr size_t kRetired = 16;      // one of so many runs is taken back when there are too many
constexpr size_t kInvalidatedAtOnce = 256;

}  // namespace

// Afterwards the granule has a place, or somebody else saw to it; the caller looks again.
Task<> Qcow2Image::give(uint64_t granule, uint64_t end_sector) {
  RunPtr run;
  {
    const AsyncSemaphore::Hold hold = co_await give_.acquire();
    if (has_own(granule)) co_await commit_own();
    co_await load(sectors_of(granule, 1));
    if (run_at(granule) || !lookup(granule / per_cluster())) co_return;
    run = co_await place(granule, end_sector);
    if (!run) co_return;
    if (!run->copied) co_await retire();
  }
  if (run->copied) co_await fill(run);
}

// Whether a run from here on may come to a cluster of subclusters that is unmapped in memory alone.
bool Qcow2Image::has_own(uint64_t granule) const {
  if (!header_->extended()) return false;
  const auto found = own_.lower_bound(granule / per_cluster());
  return found != own_.end() && found->first < page_end(granule / per_cluster());
}

Qcow2Image::Want Qcow2Image::want_of(uint64_t granule) {
  if (granule >= granules() || run_at(granule)) return {};
  const std::optional<Entry> entry = lookup(granule / per_cluster());
  if (!entry) return {};
  return want_of(*entry, granule);
}

Qcow2Image::Want Qcow2Image::want_of(const Entry& entry, uint64_t granule) const {
  using How = Want::How;
  const uint64_t cluster = granule / per_cluster(), within = granule % per_cluster();
  const Entry::Kind kind = kind_of(*header_, entry, within);
  Want want;
  if (kind == Entry::Kind::data && entry.copied) return want;
  want.how = is_cut(granule, 1) ? How::copy : How::overlay;
  want.from_beneath = kind == Entry::Kind::none && beneath_;
  want.host = entry.host / kSector + within * granule_sectors();
  if (data_file_) {
    want.placed = true;
    want.host = granule * granule_sectors();
  } else if (entry.kind == Entry::Kind::compressed) {
    want.how = How::copy;
    want.whole = true;
  } else if (entry.allocated && !entry.copied) {
    if (kind == Entry::Kind::zero && !header_->extended()) return want;
    const bool all = !header_->extended() || entry.bitmap == kAllAllocated;
    want.whole = true;
    want.how = all && !is_cut(cluster * per_cluster(), per_cluster()) ? How::cow : How::copy;
  } else if (entry.allocated) {
    want.placed = true;
  } else {
    for (const RunPtr& run : runs_in(cluster)) want.home = run->home;
    want.placed = want.home != nullptr;
    if (want.home) want.host = want.home->host + within * granule_sectors();
  }
  return want;
}

// Whether granule `b` wants the same as `a`, and in a row with it.
bool Qcow2Image::alike(uint64_t a, const Want& first, uint64_t b) {
  const Want next = want_of(b);
  const uint64_t ahead = first.host + (b - a) * granule_sectors();  // wraps where b is before a
  return next.how == first.how && next.whole == first.whole &&
         next.from_beneath == first.from_beneath && next.placed == first.placed &&
         next.home == first.home &&
         ((!first.placed && first.how != Want::How::cow) || next.host == ahead);
}

Task<Qcow2Image::RunPtr> Qcow2Image::place(uint64_t granule, uint64_t end_sector) {
  const Want want = want_of(granule);
  if (want.how == Want::How::none) co_return nullptr;
  const bool sequential = granule == next_sequential_;
  ahead_ = sequential ? std::clamp(ahead_ * 2, kFirstAhead, kMaxAhead) : 0;
  const uint64_t cluster = granule / per_cluster();
  const uint64_t wanted =
      (end_sector + granule_sectors() - 1) / granule_sectors() + ahead_ / header_->granule();
  const uint64_t around = sequential || want.placed ? 1 : clusters_around();
  const uint64_t start = round_down(cluster, around) * per_cluster();
  const uint64_t limit =
      std::min({std::max(round_up(wanted, per_cluster()), start + around * per_cluster()),
                start + kMaxRun, page_end(cluster) * per_cluster()});
  auto run = std::make_shared<Run>();
  run->read = Side::zeroes();
  run->copied = want.how == Want::How::copy;
  run->first = want.whole ? cluster * per_cluster() : granule;
  if (want.whole)
    place_whole(*run, limit);
  else
    co_await place_overlay(*run, want, granule, start, limit);
  co_await claim_table(cluster);
  co_await claim(*run, want, granule);
  run->promoted.resize(run->count / run->step);
  run->left = run->promoted.size();
  if (run->fresh && !run->copied) unused_ += run->count;
  run->filling = run->copied;
  runs_[run->first] = run;
  if (!run->copied) oldest_.push_back(run);
  next_sequential_ = run->end();
  co_return run;
}

// How many clusters a run may be that nobody asked for as a whole: a power of two, which is on one
// page of a table.
uint64_t Qcow2Image::clusters_around() const {
  const uint64_t most =
      std::min(kMaxAhead / header_->cluster(), pages_.table_bytes() / header_->l2_entry_bytes());
  const uint64_t spare = used_granules_ > unused_ ? (used_granules_ - unused_) / per_cluster() : 0;
  return is_tight_ ? 1 : std::bit_floor(std::min(most, spare) + 1);
}

// Clusters that are promoted at once: `cow`, or a copy of one.
void Qcow2Image::place_whole(Run& run, uint64_t limit) {
  run.count = per_cluster();
  run.fresh = true;
  if (run.copied) return;
  run.step = per_cluster();
  const uint64_t from = run.first;
  const Want first = want_of(from);
  while (run.end() < limit && alike(from, first, run.end())) run.count += per_cluster();
  require_in_file(run, first.host);
  run.read = Side::at(0, first.host);
}

// As far as it is alike around `granule`, from `start` to `limit`.
Task<> Qcow2Image::place_overlay(Run& run, const Want& want, uint64_t granule, uint64_t start,
                                 uint64_t limit) {
  run.count = 1;
  if (run.copied) co_return;
  while (run.first > start && alike(granule, want, run.first - 1)) run.first--;
  uint64_t end = granule + 1;
  while (end < limit && alike(granule, want, end)) end++;
  run.count = end - run.first;
  if (want.from_beneath) co_await narrow_to_beneath(run, granule);
}

// To what is in one linear place there; where not even the granule is, it is copied.
Task<> Qcow2Image::narrow_to_beneath(Run& run, uint64_t granule) {
  const uint64_t starts[] = {run.first, granule};
  for (const uint64_t from : starts) {
    const Range range = sectors_of(from, run.end() - from);
    const std::vector<Answer> below = co_await beneath_->read(range);
    for (const Answer& answer : below) {
      const auto* extent = std::get_if<Extent>(&answer);
      if (!extent) continue;
      const Range part = extent->range;
      const uint64_t first = (part.sector + granule_sectors() - 1) / granule_sectors();
      const uint64_t end = std::min(part.end() / granule_sectors(), run.end());
      if (granule < first || granule >= end) continue;
      run.first = first;
      run.count = end - first;
      run.read = extent->read;
      if (run.read.kind == Side::Kind::disk)
        run.read.sector += first * granule_sectors() - part.sector;
      co_return;
    }
  }
  run.copied = true;
  run.first = granule;
  run.count = 1;
}

void Qcow2Image::cut_front(Run& run, uint64_t first) const {
  if (run.read.kind == Side::Kind::disk) run.read.sector += (first - run.first) * granule_sectors();
  run.count -= first - run.first;
  run.first = first;
}

Task<> Qcow2Image::claim(Run& run, const Want& want, uint64_t granule) {
  if (want.placed) {
    run.host = want.host - (granule - run.first) * granule_sectors();
    run.home = want.home;
    require_in_file(run, run.host);
    co_return;
  }
  // Whole clusters, if that of the granule is one of them.
  const uint64_t own = round_down(granule, per_cluster());
  const uint64_t first = round_up(run.first, per_cluster());
  const bool whole = first <= own && run.end() >= own + per_cluster();
  cut_front(run, whole ? first : std::max(run.first, own));
  const HostRun host = co_await refcounts_->claim(whole ? run.count / per_cluster() : 1);
  run.host = host.first * cluster_sectors();
  pages_.forget(host.first << header_->cluster_bits, host.count << header_->cluster_bits);
  if (whole) {
    run.fresh = true;
    const uint64_t count = host.count * per_cluster();
    if (run.first + count <= granule) cut_front(run, own + per_cluster() - count);
    run.count = count;
    co_return;
  }
  run.count = std::min(run.end(), own + per_cluster()) - run.first;
  const auto give_back = [refcounts = refcounts_.get(), host](Home* home) {
    if (!home->named) refcounts->release(host.first, 1);
    delete home;
  };
  run.home = std::shared_ptr<Home>(new Home{run.host}, give_back);
  run.host += run.first % per_cluster() * granule_sectors();
}

// The kernel takes no place that its device has not.
void Qcow2Image::require_in_file(const Run& run, uint64_t host) const {
  if (host + sectors_of(run).len <= data_disk().size() / kSector) return;
  throw Error(EIO, request_.top->name() + ": cluster " + std::to_string(run.first / per_cluster()) +
                       " of the disk, or one after it, is beyond the end of " + data_disk().name() +
                       ". If that was cut off or copied in part, restore it.");
}

// The commit should not be what finds that there is no room for a table.
Task<> Qcow2Image::claim_table(uint64_t cluster) {
  const uint64_t index = cluster / header_->l2_entries();
  if ((l1_[index] & kOffsetMask && l1_[index] & kCopied) || new_tables_.count(index)) co_return;
  const HostRun host = co_await refcounts_->claim(1);
  // Somebody else, or a commit, may have been faster.
  const bool there = l1_[index] & kOffsetMask && l1_[index] & kCopied;
  if (there || !new_tables_.emplace(index, host.first).second) refcounts_->release(host.first, 1);
}

// Copies what is read there to its new place. It is ours until then: who writes waits.
Task<> Qcow2Image::fill(RunPtr run) {
  const bool always = request_.durability == Durability::always;
  std::exception_ptr failure;
  try {
    Buffer bytes(run->count * header_->granule());
    const Range range = sectors_of(*run);
    co_await read_range(range, std::span<std::byte>(bytes).first(range.len * kSector));
    // A data file ends with the disk.
    const uint64_t length = data_file_ ? range.len * kSector : bytes.size();
    co_await write_any(data_disk(), run->host * kSector,
                       std::span<const std::byte>(bytes).first(length));
    if (always) {
      co_await data_disk().flush();
      note_filled(*run);
    }
  } catch (...) {
    failure = std::current_exception();
  }
  run->filling = false;
  if (failure) {
    take_back(run);
    changed_.notify();
    std::rethrow_exception(failure);
  }
  if (always) runs_.erase(run->first);
  changed_.notify();
  // Its mapping is durable before anybody may write there.
  if (always) co_await commit_own();
}

// The copy is ours to commit; the kernel tells nothing of it. As what it tells is, the granules are
// added to whatever the cluster's entry is then: a commit may be changing that just now.
void Qcow2Image::note_filled(const Run& run) {
  if (run.home) run.home->named = true;
  for (uint64_t granule = run.first; granule < std::min(run.end(), granules()); granule++) {
    const uint64_t host = run.host + (granule - run.first) * granule_sectors();
    promoted_[granule] = {(host - granule % per_cluster() * granule_sectors()) * kSector, 0};
  }
}

// What was not promoted goes back; a home by itself.
void Qcow2Image::take_back(const RunPtr& run) {
  runs_.erase(run->first);
  if (!run->fresh) return;
  if (!run->copied) unused_ -= run->left * run->step;
  const uint64_t steps = per_cluster() / run->step;
  for (uint64_t at = 0; at < run->promoted.size(); at += steps) {
    const auto first = run->promoted.begin() + static_cast<ptrdiff_t>(at);
    if (std::find(first, first + static_cast<ptrdiff_t>(steps), true) !=
        first + static_cast<ptrdiff_t>(steps))
      continue;
    refcounts_->release(run->host / cluster_sectors() + at / steps, 1);
  }
}

// The kernel never forgets an overlay by itself. Those that are complete are taken back first:
// they come again as plain extents when they are needed. Many at once: the kernel waits for a
// grace period of RCU, once for all that it is asked for meanwhile.
Task<> Qcow2Image::retire() {
  if (oldest_.size() <= max_runs_ || !request_.invalidate) co_return;
  const std::vector<RunPtr> victims = choose_victims();
  co_await retire(victims);
}

Task<> Qcow2Image::retire(const std::vector<RunPtr>& victims) {
  for (const RunPtr& run : victims) run->closing = true;
  const std::function<Task<>(size_t)> retire_one = [this, &victims](size_t i) -> Task<> {
    co_await retire(victims[i]);
  };
  co_await for_each_parallel(victims.size(), kInvalidatedAtOnce, retire_one);
  changed_.notify();
}

// There is no room but in what was given and not used. False if there is none in that either.
Task<bool> Qcow2Image::take_back_unused() {
  const AsyncSemaphore::Hold hold = co_await give_.acquire();
  std::vector<RunPtr> victims;
  if (request_.invalidate) {
    const auto unused = std::stable_partition(
        oldest_.begin(), oldest_.end(),
        [](const RunPtr& run) { return run->left == 0 || !(run->fresh || run->home); });
    victims.assign(unused, oldest_.end());
    oldest_.erase(unused, oldest_.end());
  }
  is_tight_ = true;
  co_await retire(victims);
  co_return !victims.empty();
}

// They are no longer in oldest_.
std::vector<Qcow2Image::RunPtr> Qcow2Image::choose_victims() {
  const size_t most = std::max<size_t>(1, max_runs_ / kRetired);
  std::vector<RunPtr> victims;
  auto at = oldest_.begin();
  for (size_t looked = 0; looked < 4 * most && victims.size() < most && at != oldest_.end();
       ++looked) {
    const auto each = at++;
    if ((*each)->left) continue;
    victims.push_back(*each);
    oldest_.erase(each);
  }
  if (victims.empty()) {
    victims.push_back(oldest_.front());
    oldest_.pop_front();
  }
  return victims;
}

Task<> Qcow2Image::retire(RunPtr run) {
  std::exception_ptr failure;
  try {
    co_await request_.invalidate(sectors_of(*run));
  } catch (...) {
    failure = std::current_exception();
  }
  run->closing = false;
  if (failure)
    oldest_.push_back(run);
  else
    take_back(run);
}

}  // namespace cowd::qcow2
