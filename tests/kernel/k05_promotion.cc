// SPDX-License-Identifier: GPL-2.0-or-later
// K5: a granule is promoted when its copy and first write have completed; reads
// see old data until then, other writes to it wait, PROMOTED is queued before the
// write completes upward, and a bio takes the free prefix of its granules.
#include <cerrno>
#include <random>

#include "tests/kernel/cow.hh"

using namespace dmutest;

namespace {

constexpr uint32_t kBig = 128;

}  // namespace

CASE(k05_reads_see_old_data_until_promoted) {
  Ram ram;
  auto slow = linear_over(ram);
  Rig rig(nullptr, slow.get());
  Channel channel(*rig.target);
  rig.push_overlay(channel, kBig);
  slow->hold();
  Io write = rig.file->write(0, kBig, kNew);
  EVENTUALLY(rig.in_flight() == 1);
  CHECK_READS(*rig.file, 0, 2 * kBig, kBase);  // not held: it is read from the base
  channel.expect_silence();
  CHECK(channel.promoted.empty());
  CHECK_EQ(rig.target->status().uncommitted, 0U);
  slow->release();
  CHECK_EQ(write.result(), kBig * 512);
  channel.expect_promoted(kBig);
  CHECK_READS(*rig.file, 0, kBig, kNew);
}

CASE(k05_other_writes_to_the_granule_wait) {
  Ram ram;
  auto slow = linear_over(ram);
  Rig rig(slow.get(), nullptr);
  Channel channel(*rig.target);
  rig.push_overlay(channel, kBig);
  slow->hold();  // the copy from the base
  Io first = rig.file->write(0, 8, 10);
  EVENTUALLY(rig.in_flight() == 1);
  Io second = rig.file->write(8, 8, 11), third = rig.file->write(0, 16, 12);
  EVENTUALLY(rig.target->status().bios_parked >= 2);
  rig.promote(channel, kBig, kBig, 13);  // another granule does not wait
  CHECK(!first.done() && !second.done() && !third.done());
  slow->release();
  for (Io* io : {&first, &second, &third}) CHECK(io->result() > 0);
  channel.expect_promoted(kBig);
  CHECK_EQ(rig.target->status().promotions, 2U);
  CHECK_READS(*rig.file, 16, kBig - 16, kBase);
  CHECK(rig.file->difference(0, 8, 12).empty() || rig.file->difference(0, 8, 10).empty());
  CHECK(rig.file->difference(8, 8, 12).empty() || rig.file->difference(8, 8, 11).empty());
}

CASE(k05_promoted_is_told_before_the_write_completes) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  for (uint64_t i = 0; i < 200; i++) {
    CHECK_EQ(rig.file->write_now(i * 16, 8, kNew), 8 * 512);
    auto msg = channel.next(Ms(0));  // it is there, nobody has to wait for it
    CHECK(msg && msg->type == DMU_MSG_PROMOTED);
    CHECK_EQ(msg->sector, i * 16);
    CHECK_EQ(msg->len, 8U);
    CHECK_EQ(msg->write_dest, 1U);
    CHECK_EQ(msg->write_sector, i * 16);
    CHECK(msg->seq > 0);
  }
}

CASE(k05_seq_grows_and_ranges_are_whole_granules) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel, kBig);
  CHECK_EQ(rig.file->write(kBig + 8, 2 * kBig, kNew).result(), 2 * kBig * 512);
  uint64_t last = 0, sectors = 0;
  while (sectors < 3 * kBig) {
    dmu_msg msg = channel.expect(DMU_MSG_PROMOTED);
    CHECK(msg.seq > last);
    last = msg.seq;
    CHECK_EQ(msg.sector % kBig, 0U);
    CHECK_EQ(msg.len % kBig, 0U);
    sectors += msg.len;
  }
  CHECK_EQ(sectors, 3U * kBig);
}

CASE(k05_takes_the_free_prefix) {
  Ram ram;
  PartlyHeld cow(ram, 2 * kGranule, kGranule);
  Rig rig(nullptr, &cow.disk());
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  cow.held().hold();
  Io holder = rig.file->write(2 * kGranule, kGranule, 10);
  EVENTUALLY(rig.in_flight() == 1);
  Io wide = rig.file->write(0, 4 * kGranule, 11);
  channel.expect_promoted(2 * kGranule);  // the two granules before the one that is busy
  CHECK(!wide.done() && !holder.done());
  CHECK_READS(*rig.file, 0, 2 * kGranule, 11);
  // It holds none while it waits: the last granule is free for others.
  Io last = rig.file->write(3 * kGranule, kGranule, 12);
  CHECK_EQ(last.result(), kGranule * 512);
  cow.held().release();
  CHECK_EQ(holder.result(), kGranule * 512);
  CHECK_EQ(wide.result(), 4 * kGranule * 512);
  CHECK_READS(*rig.file, 0, 4 * kGranule, 11);
}

// null_blk writes each bio under a lock; brd does not, and two writers of a sector may leave one of both.
CASE(k05_overlapping_writers_never_deadlock) {
  Null whole;
  Rig rig(nullptr, &whole);
  CowStore store;
  store.granule = kBig;
  Cow cow(*rig.target, store);
  std::vector<Io> writers;
  for (unsigned w = 0; w < 6; w++)
    writers.emplace_back([&rig, w] {
      std::minstd_rand random(w + 1);
      for (int i = 0; i < 60; i++) {
        uint64_t len = 8 * (1 + random() % 96), at = 8 * (random() % ((kSize - len) / 8));
        if (long r = rig.file->write_now(at, len, 10 + w); r != static_cast<long>(len * 512)) return r;
      }
      return 0L;
    });
  for (Io& io : writers) CHECK_EQ(io.result(kCase), 0);
  // Every sector is the base's or some writer's, whole.
  Buffer buf(kSize);
  CHECK_EQ(rig.file->read_now(0, buf), kSize * 512);
  for (uint64_t i = 0; i < kSize; i++) {
    Seed seed = buf.seed_of(i, 0);
    CHECK(seed == kBase || (seed >= 10 && seed < 16));
  }
  cow.kill();
  cow.check();
  CHECK_READS(File(rig.base->path()), 0, kSize, kBase);
}

// Of an overlay, INVALIDATE of a part drops the bits there, and the daemon is asked for them.
CASE(k05_bits_dropped_in_part_are_asked_for) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  rig.promote(channel, 0, 8, kNew);
  channel.send(dmu_msg_committed(channel.seq));
  channel.invalidate(64, 8);
  CHECK_EQ(rig.target->status().extents, 1U);
  Io read = rig.file->read(0, 8);
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  CHECK(fault.flags & DMU_F_LEAF);
  CHECK(!read.done());
  uint8_t bits[kSize / kGranule / 8] = {0x01};
  channel.send(dmu_msg_bitmap(fault.id, 0, fault.sector, fault.len, bits, sizeof bits));
  CHECK_EQ(read.result(), 8 * 512);
  CHECK_READS(*rig.file, 0, 8, kNew);
  CHECK_READS(*rig.file, 8, 64, kBase);
}

CASE(k05_rewrites_need_no_daemon) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  rig.push_overlay(*channel);
  rig.promote(*channel, 0, 64, 10);
  uint64_t faults = rig.target->status().faults;
  channel->close();
  CHECK_EQ(rig.file->write(0, 64, 11).result(), 64 * 512);
  CHECK_READS(*rig.file, 0, 64, 11);
  CHECK_READS(*rig.file, 64, 64, kBase);
  CHECK_EQ(rig.target->status().faults, faults);
}

CASE(k05_bits_of_a_leaf_are_used) {
  Rig rig;
  Channel channel(*rig.target);
  Io read = rig.file->read(0, 8);
  channel.send(map_overlay(channel.expect(DMU_MSG_FAULT).id, kSize, 0, kGranule));
  dmu_msg leaf = channel.expect(DMU_MSG_FAULT);
  CHECK(leaf.flags & DMU_F_LEAF);
  CHECK_EQ(leaf.sector, 0U);
  CHECK_EQ(leaf.len, kSize);
  uint8_t bits[kSize / kGranule / 8] = {0x05};  // granules 0 and 2
  channel.send(dmu_msg_bitmap(leaf.id, 0, leaf.sector, leaf.len, bits, sizeof bits));
  CHECK_EQ(read.result(), 8 * 512);
  CHECK_READS(*rig.file, 0, 8, kCow);
  CHECK_READS(*rig.file, 8, 8, kBase);
  CHECK_READS(*rig.file, 16, 8, kCow);
  CHECK_READS(*rig.file, 24, kSize - 24, kBase);
  // They were promoted long ago: a write to them tells nobody.
  CHECK_EQ(rig.file->write(0, 8, kNew).result(), 8 * 512);
  channel.expect_silence();
  CHECK(channel.promoted.empty());
}

CASE(k05_leaf_with_all_granules) {
  Rig rig;
  Channel channel(*rig.target);
  Io read = rig.file->read(0, 8);
  channel.send(map_overlay(channel.expect(DMU_MSG_FAULT).id, kSize, 0, kGranule));
  dmu_msg leaf = channel.expect(DMU_MSG_FAULT);
  channel.send(dmu_msg_bitmap_all(leaf.id, 0, leaf.sector, leaf.len));
  CHECK_EQ(read.result(), 8 * 512);
  CHECK_READS(*rig.file, 0, kSize, kCow);
}
