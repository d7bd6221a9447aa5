// SPDX-License-Identifier: GPL-2.0-or-later
// K3: a drain counts I/O at the destinations and running copies, never bios that
// wait for the daemon, so it always ends.
#include <cerrno>
#include <vector>

#include "tests/kernel/target.hh"

using namespace dmutest;

namespace {

void push_plain(Channel& channel, uint64_t sector, uint64_t len, uint32_t dest) {
  dmu_msg map = map_plain(0, sector, len, dest, sector);
  dmu_map_push(&map, channel.gen);
  channel.send(map);
}

}  // namespace

CASE(k03_invalidate_ends_with_bios_parked) {
  Rig rig;
  Channel channel(*rig.target);
  push_plain(channel, 1024, 1024, 1);
  Io read = rig.file->read(0, 8), write = rig.file->write(64, 8, kNew);
  channel.expect(DMU_MSG_FAULT);
  channel.expect(DMU_MSG_FAULT);
  channel.send(dmu_msg_invalidate(3, 0, kSize));
  // The two are asked again: what was read for the old ids may be out of date.
  std::map<uint64_t, dmu_msg> again;
  for (bool drained = false; !drained || again.size() < 2;) {
    auto msg = channel.next(kSoon);
    CHECK(msg);
    CHECK(msg->type == DMU_MSG_FAULT || msg->type == DMU_MSG_INVALIDATED);
    if (msg->type == DMU_MSG_FAULT) again[msg->sector] = *msg;
    drained |= msg->type == DMU_MSG_INVALIDATED;
  }
  CHECK(!read.done() && !write.done());
  for (auto& [sector, fault] : again) channel.send(map_plain(fault.id, sector, fault.len, 1, sector));
  CHECK_EQ(read.result(), 8 * 512);
  CHECK_EQ(write.result(), 8 * 512);
}

// There is no overlay any more whose bits could be told: each asks for a mapping now.
CASE(k03_who_asked_for_bits_asks_for_a_mapping) {
  Rig rig;
  Channel channel(*rig.target);
  Io read = rig.file->read(0, 8);
  channel.send(map_overlay(channel.expect(DMU_MSG_FAULT).id, kSize, 0, kGranule));
  CHECK(channel.expect(DMU_MSG_FAULT).flags & DMU_F_LEAF);
  channel.send(dmu_msg_invalidate(4, 0, kSize));
  for (bool drained = false, asked = false; !drained || !asked;) {
    auto msg = channel.next(kSoon);
    CHECK(msg);
    drained |= msg->type == DMU_MSG_INVALIDATED;
    if (msg->type != DMU_MSG_FAULT) continue;
    asked = true;
    CHECK(!(msg->flags & DMU_F_LEAF));
    channel.send(map_plain(msg->id, msg->sector, msg->len, 1, msg->sector));
  }
  CHECK_EQ(read.result(), 8 * 512);
}

CASE(k03_invalidate_waits_for_io_at_the_destination) {
  Ram ram;
  auto slow = linear_over(ram);
  Rig rig(nullptr, slow.get());
  Channel channel(*rig.target);
  push_plain(channel, 0, kSize, 1);
  slow->hold();
  Io write = rig.file->write(0, 8, kNew);
  // Dropped from the cache at once, and drained only when the write is through.
  EVENTUALLY(rig.in_flight() == 1);
  channel.send(dmu_msg_invalidate(77, 0, kSize));
  channel.expect_silence();
  CHECK(!write.done());
  slow->release();
  CHECK_EQ(channel.expect(DMU_MSG_INVALIDATED).id, 77U);
  CHECK_EQ(write.result(), 8 * 512);
  Io again = rig.file->read(0, 8);
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  channel.send(map_plain(fault.id, 0, kSize, 1, 0));
  CHECK_EQ(again.result(), 8 * 512);
}

CASE(k03_invalidate_elsewhere_does_not_wait) {
  Ram ram;
  auto slow = linear_over(ram);
  Rig rig(nullptr, slow.get());
  Channel channel(*rig.target);
  push_plain(channel, 0, 1024, 1);
  push_plain(channel, 1024, 1024, 1);
  slow->hold();
  Io write = rig.file->write(0, 8, kNew);
  EVENTUALLY(rig.in_flight() == 1);
  // What it may wait for is bounded by I/O under way, and that is released here.
  channel.send(dmu_msg_invalidate(5, 1024, 1024));
  std::optional<dmu_msg> early = channel.next(kNotYet);
  slow->release();
  if (!early) early = channel.expect(DMU_MSG_INVALIDATED);
  CHECK_EQ(early->id, 5U);
  CHECK_EQ(write.result(), 8 * 512);
}

CASE(k03_invalidations_that_nobody_reads_are_bounded) {
  constexpr uint64_t kMost = 16384;  // dm-userspace.rst
  Rig rig;
  Channel channel(*rig.target);
  for (uint64_t id = 1; id <= kMost; id++) CHECK_EQ(channel.try_send(dmu_msg_invalidate(id, 0, 8)), 0);
  CHECK_EQ(channel.try_send(dmu_msg_invalidate(kMost + 1, 0, 8)), -ENOMEM);
  CHECK_EQ(channel.expect(DMU_MSG_INVALIDATED).id, 1U);
  // A read brings a bufferful; then there is room for as many.
  channel.send(dmu_msg_invalidate(kMost + 1, 0, 8));
  for (uint64_t id = 2; id <= kMost + 1; id++) CHECK_EQ(channel.expect(DMU_MSG_INVALIDATED).id, id);
  channel.invalidate(0, 8);
}

CASE(k03_invalidate_waits_for_a_copy) {
  Ram ram;
  auto slow = linear_over(ram);
  Rig rig(slow.get(), nullptr);
  Channel channel(*rig.target);
  rig.push_overlay(channel, 64);
  slow->hold();
  Io write = rig.file->write(0, 8, kNew);  // 56 sectors are to be copied from the base
  EVENTUALLY(rig.in_flight() == 1);
  channel.send(dmu_msg_invalidate(9, 0, kSize));
  channel.expect_silence();
  slow->release();
  channel.expect(DMU_MSG_INVALIDATED);
  // The promotion either went through before the drain ended, or was parked and asks now.
  if (!write.done()) {
    auto fault = channel.next(kNotYet);
    if (fault && fault->type == DMU_MSG_FAULT) channel.send(map_overlay(fault->id, kSize, 0, 64));
  }
  CHECK_EQ(write.result(), 8 * 512);
}

CASE(k03_drain_ends_under_load) {
  Rig rig;
  Channel channel(*rig.target);
  push_plain(channel, 0, kSize, 1);
  std::atomic<bool> stop{false};
  std::vector<Io> load;
  for (int i = 0; i < 4; i++)
    load.emplace_back([&, i] {
      for (uint64_t n = 0; !stop; n++)
        if (long r = rig.file->write_now((n * 8 + static_cast<uint64_t>(i) * 4096) % kSize, 8, kNew); r != 8 * 512) return r;
      return 0L;
    });
  for (uint64_t round = 0; round < 20; round++) {
    channel.send(dmu_msg_invalidate(round + 1, 0, kSize));
    for (;;) {  // faults are answered meanwhile: the load never pauses for the drain
      auto msg = channel.next(kSoon);
      CHECK(msg);
      if (msg->type == DMU_MSG_INVALIDATED) break;
      channel.send(map_plain(msg->id, 0, kSize, 1, 0));
    }
  }
  stop = true;
  auto end = Clock::now() + kSoon;
  for (Io& io : load)
    while (!io.done()) {
      CHECK(Clock::now() < end);
      auto msg = channel.next(Ms(10));
      if (msg && msg->type == DMU_MSG_FAULT) channel.send(map_plain(msg->id, 0, kSize, 1, 0));
    }
  for (Io& io : load) CHECK_EQ(io.result(), 0);
}

CASE(k03_many_invalidates_each_get_an_answer) {
  Rig rig;
  Channel channel(*rig.target);
  for (uint64_t i = 0; i < 64; i++) push_plain(channel, i * 64, 64, 1);
  for (uint64_t i = 1; i <= 64; i++) channel.send(dmu_msg_invalidate(i, (i - 1) * 64, 64));
  uint64_t gen = 0;
  std::set<uint64_t> ids;
  for (int i = 0; i < 64; i++) {
    dmu_msg msg = channel.expect(DMU_MSG_INVALIDATED);
    CHECK(ids.insert(msg.id).second);
    gen = std::max<uint64_t>(gen, msg.gen);
  }
  CHECK(gen >= 64);
  CHECK_EQ(rig.target->status().extents, 0U);
  CHECK_EQ(rig.target->status().invalidations, 64U);
}
