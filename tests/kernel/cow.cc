// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/kernel/cow.hh"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace dmutest {

constexpr Ms kCommitEvery{100};

Cow::Cow(const Target& target, CowStore& store)
    : target_(target), store_(store), stop_(eventfd(0, EFD_CLOEXEC)), thread_([this] { serve(); }) {}

void Cow::kill() {
  if (!thread_.joinable()) return;
  eventfd_write(stop_, 1);
  thread_.join();
  close(stop_);
}

void Cow::check() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!error_.empty()) FAIL("the daemon: " + error_);
}

void Cow::serve() {
  try {
    Channel channel(target_, true);
    auto last = Clock::now();
    for (;;) {
      pollfd fds[2] = {{channel.fd(), POLLIN, 0}, {stop_, POLLIN, 0}};
      poll(fds, 2, static_cast<int>(kCommitEvery.count()));
      if (fds[1].revents) return;
      if (fds[0].revents & POLLHUP) return;
      while (auto msg = channel.next(Ms(0))) handle(channel, *msg);
      if (replaying_ || pending_.empty() || Clock::now() - last < kCommitEvery) continue;
      last = Clock::now();
      commit();
      int r = channel.try_send(dmu_msg_committed(channel.seq));
      if (r && r != -ENODEV) FAIL("COMMITTED gave " + std::to_string(r));
    }
  } catch (const std::exception& e) {
    std::lock_guard<std::mutex> lock(mutex_);
    error_ = e.what();
  }
}

void Cow::handle(Channel& channel, const dmu_msg& msg) {
  counts_[msg.type % 64]++;
  switch (msg.type) {
    case DMU_MSG_FAULT:
      if (replaying_) FAIL("FAULT before REPLAY_DONE");
      return msg.flags & DMU_F_LEAF ? answer_leaf(channel, msg) : answer_fault(channel, msg);
    case DMU_MSG_PROMOTED:
      return promoted(msg);
    case DMU_MSG_REPLAY_DONE:
      replaying_ = false;
      return;
    case DMU_MSG_FLUSH:
    case DMU_MSG_DONE:
      commit();
      break;
    case DMU_MSG_INVALIDATED:
      return;
    default:
      FAIL("unexpected message " + std::to_string(msg.type));
  }
  int r = channel.try_send(dmu_msg_ack(msg.id));
  if (r && r != -ENOENT) FAIL("ACK gave " + std::to_string(r));
}

void Cow::answer_fault(Channel& channel, const dmu_msg& msg) {
  int r = channel.try_send(map_overlay(msg.id, channel.attach().sectors, 0, store_.granule, store_.flags));
  if (r && r != -ENOENT) FAIL("MAP gave " + std::to_string(r));
}

void Cow::answer_leaf(Channel& channel, const dmu_msg& msg) {
  std::vector<uint8_t> bits(DMU_LEAF_GRANULES / 8);
  uint64_t first = msg.sector / store_.granule;
  auto add = [&](const std::set<uint64_t>& granules) {
    for (auto g = granules.lower_bound(first); g != granules.end() && *g < first + DMU_LEAF_GRANULES; ++g)
      bits[(*g - first) / 8] |= static_cast<uint8_t>(1U << ((*g - first) % 8));
  };
  add(store_.durable);
  add(pending_);
  uint64_t granules = (msg.len + store_.granule - 1) / store_.granule;
  auto bytes = static_cast<uint32_t>((granules + 7) / 8);
  int r = channel.try_send(dmu_msg_bitmap(msg.id, 0, msg.sector, msg.len, bits.data(), bytes));
  if (r && r != -ENOENT) FAIL("BITMAP gave " + std::to_string(r));
}

void Cow::promoted(const dmu_msg& msg) {
  if (msg.flags & DMU_F_VOLATILE) return;  // the kernel keeps those itself
  if (msg.write_dest != 1 || msg.write_sector != msg.sector) FAIL("PROMOTED names the wrong place");
  for (uint64_t g = msg.sector / store_.granule; g * store_.granule < msg.sector + msg.len; g++) pending_.insert(g);
}

void Cow::commit() {
  store_.durable.insert(pending_.begin(), pending_.end());
  pending_.clear();
}

}  // namespace dmutest
