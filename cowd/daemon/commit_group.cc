// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/commit_group.hh"

#include <algorithm>
#include <cassert>
#include <iterator>
#include <utility>

namespace cowd {

void CommitGroup::promoted(uint64_t seq) { read_ = std::max(read_, seq); }

void CommitGroup::flush(uint64_t seq, Waiter waiter) { add({seq, true, std::move(waiter)}); }

void CommitGroup::done(uint64_t seq, Waiter waiter) { add({seq, false, std::move(waiter)}); }

void CommitGroup::all(Waiter waiter) {
  if (!dirty()) return waiter(nullptr);
  add({read_, false, std::move(waiter), false});
}

bool CommitGroup::covered(const Pending& pending) const {
  return pending.seq <= committed_ && (pending.data_flushed || pending.seq != 0);
}

void CommitGroup::add(Pending pending) {
  if (covered(pending)) return pending.waiter(nullptr);
  pending_.push_back(std::move(pending));
}

std::optional<CommitGroup::Round> CommitGroup::begin(bool due) {
  if (running_ || (pending_.empty() && !(due && dirty()))) return std::nullopt;
  bool flushes_alone =
      !due && std::all_of(pending_.begin(), pending_.end(),
                          [](const Pending& pending) { return pending.data_flushed; });
  uint64_t asked = 0;
  for (const Pending& pending : pending_) asked = std::max(asked, pending.seq);
  uint64_t seq = flushes_alone ? asked : std::max(read_, asked);
  round_ = {seq, flushes_alone, !flushes_alone && seq > committed_};
  current_ = std::exchange(pending_, {});
  running_ = true;
  return round_;
}

void CommitGroup::finish(const Error* error) {
  assert(running_);
  running_ = false;
  auto current = std::exchange(current_, {});
  if (error) {
    for (auto& pending : current) pending.waiter(error);
    return;
  }
  committed_ = std::max(committed_, round_.seq);
  for (auto& pending : current) pending.waiter(nullptr);
  release(pending_);
}

void CommitGroup::finish_later(const Error& error) {
  assert(running_);
  running_ = false;
  auto again = std::exchange(current_, {});
  std::move(pending_.begin(), pending_.end(), std::back_inserter(again));
  pending_.clear();
  give_up(again, error);
  std::move(pending_.begin(), pending_.end(), std::back_inserter(again));  // asked meanwhile
  pending_ = std::move(again);
}

// Takes those from `list` that cannot wait, and tells them.
void CommitGroup::give_up(std::vector<Pending>& list, const Error& error) {
  auto from = std::stable_partition(list.begin(), list.end(),
                                    [](const Pending& pending) { return pending.patient; });
  std::vector<Pending> failed(std::make_move_iterator(from), std::make_move_iterator(list.end()));
  list.erase(from, list.end());
  for (auto& pending : failed) pending.waiter(&error);
}

// Calls those of `list` that the last commit happens to cover.
void CommitGroup::release(std::vector<Pending>& list) {
  auto late = std::stable_partition(list.begin(), list.end(),
                                    [this](const Pending& pending) { return !covered(pending); });
  std::vector<Pending> ready(std::make_move_iterator(late), std::make_move_iterator(list.end()));
  list.erase(late, list.end());
  for (auto& pending : ready) pending.waiter(nullptr);
}

}  // namespace cowd
