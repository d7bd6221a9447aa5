// SPDX-License-Identifier: GPL-2.0-or-later
// K11: suspend always ends; what a table reload keeps and what it drops.
#include <cerrno>

#include "tests/kernel/cow.hh"

using namespace dmutest;

namespace {

void fail_soon(dmu_spec& spec) {
  spec.no_daemon = DMU_NO_DAEMON_FAIL;
  spec.no_daemon_secs = 1;
}

std::vector<Dest> both(Rig& rig) { return {{rig.base, true}, {rig.cow, false}}; }

Io suspend(Rig& rig, uint32_t flags) {
  return Io([&rig, flags] { return static_cast<long>(rig.target->suspend(flags)); });
}

}  // namespace

CASE(k11_noflush_pushes_parked_bios_back) {
  Rig rig;
  Channel channel(*rig.target);
  Io read = rig.file->read(0, 8), write = rig.file->write(64, 8, kNew);
  dmu_msg old = channel.expect(DMU_MSG_FAULT);
  channel.expect(DMU_MSG_FAULT);
  CHECK_EQ(rig.target->suspend(DMU_NOFLUSH), 0);
  CHECK_EQ(rig.target->status().bios_parked, 0U);
  CHECK_EQ(rig.target->status().state, static_cast<uint32_t>(DMU_STATE_SUSPENDED));
  CHECK(!read.done() && !write.done());
  CHECK_EQ(channel.try_send(map_plain(old.id, old.sector, old.len, 1, old.sector)), -ENOENT);
  CHECK_EQ(rig.target->resume(), 0);
  for (int i = 0; i < 2; i++) {
    dmu_msg fault = channel.expect(DMU_MSG_FAULT);
    channel.send(map_plain(fault.id, fault.sector, fault.len, 1, fault.sector));
  }
  CHECK_EQ(read.result(), 8 * 512);
  CHECK_EQ(write.result(), 8 * 512);
}

CASE(k11_noflush_with_the_daemon_dead) {
  Rig rig;
  Io read = rig.file->read(0, 8), write = rig.file->write(64, 8, kNew);
  EVENTUALLY(rig.target->status().bios_parked == 2);
  CHECK_EQ(rig.target->suspend(DMU_NOFLUSH), 0);
  CHECK_EQ(rig.target->resume(), 0);
  Channel channel(*rig.target);
  for (int i = 0; i < 2; i++) {
    dmu_msg fault = channel.expect(DMU_MSG_FAULT);
    channel.send(map_plain(fault.id, fault.sector, fault.len, 1, fault.sector));
  }
  CHECK_EQ(read.result(), 8 * 512);
  CHECK_EQ(write.result(), 8 * 512);
}

CASE(k11_noflush_pushes_flushes_back) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  rig.promote(channel, 0, 8, kNew);
  Io sync = rig.file->sync();
  channel.expect(DMU_MSG_FLUSH);
  CHECK_EQ(rig.target->suspend(DMU_NOFLUSH), 0);
  CHECK(!sync.done());
  CHECK_EQ(rig.target->resume(), 0);
  channel.send(dmu_msg_ack(channel.expect(DMU_MSG_FLUSH).id));
  CHECK_EQ(sync.result(), 0);
}

// The write is on the disk and is to be held until its metadata is durable; after a
// suspend in between that still has to be so.
// Those that wait until the daemon has caught up (K7).
CASE(k11_noflush_pushes_promoting_writes_back) {
  Rig rig([](dmu_spec& spec) { spec.max_uncommitted = 1; });
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  rig.promote(channel, 0, 8, kNew);
  Io write = rig.file->write(64, 8, kNew);
  EVENTUALLY(rig.target->status().bios_parked == 1);
  CHECK_EQ(rig.target->suspend(DMU_NOFLUSH), 0);
  CHECK_EQ(rig.target->status().bios_parked, 0U);
  CHECK(!write.done());
  CHECK_EQ(rig.target->resume(), 0);
  EVENTUALLY(rig.target->status().bios_parked == 1);
  channel.send(dmu_msg_committed(channel.seq));
  CHECK_EQ(write.result(), 8 * 512);
  CHECK_READS(*rig.file, 64, 8, kNew);
}

CASE(k11_noflush_does_not_lose_sync) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel, kGranule, DMU_F_SYNC);
  Io write = rig.file->write(0, 8, kNew);
  channel.expect(DMU_MSG_DONE);
  CHECK_EQ(rig.target->suspend(DMU_NOFLUSH), 0);
  CHECK(!write.done());
  CHECK_EQ(rig.target->resume(), 0);
  dmu_msg done = channel.expect(DMU_MSG_DONE);
  CHECK(!write.done());
  channel.send(dmu_msg_ack(done.id));
  CHECK_EQ(write.result(), 8 * 512);
}

CASE(k11_flush_with_a_daemon_serves_all) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  rig.promote(channel, 0, 8, kNew);
  Io sync = rig.file->sync();
  dmu_msg flush = channel.expect(DMU_MSG_FLUSH);
  Io ended = suspend(rig, DMU_SKIP_LOCKFS);
  channel.expect_silence();
  CHECK(!ended.done());  // it waits for the flush
  channel.send(dmu_msg_ack(flush.id));
  CHECK_EQ(sync.result(), 0);
  CHECK_EQ(ended.result(), 0);
  CHECK_EQ(rig.target->resume(), 0);
  CHECK_READS(*rig.file, 0, 8, kNew);
}

CASE(k11_flush_with_a_daemon_serves_faults) {
  Rig rig;
  Channel channel(*rig.target);
  Io write = rig.file->write(64, 8, kNew);
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  Io ended = suspend(rig, DMU_SKIP_LOCKFS);
  channel.expect_silence();
  CHECK(!ended.done());
  channel.send(map_plain(fault.id, fault.sector, fault.len, 1, fault.sector));
  CHECK_EQ(write.result(), 8 * 512);
  CHECK_EQ(ended.result(), 0);
  CHECK_EQ(rig.target->resume(), 0);
}

CASE(k11_flush_with_the_daemon_dying_meanwhile) {
  Rig rig(fail_soon);
  auto channel = std::make_unique<Channel>(*rig.target);
  Io write = rig.file->write(64, 8, kNew);
  channel->expect(DMU_MSG_FAULT);
  Io ended = suspend(rig, DMU_SKIP_LOCKFS);
  channel->close();
  CHECK_EQ(write.result(), -EIO);
  CHECK_EQ(ended.result(), 0);
  CHECK_EQ(rig.target->resume(), 0);
}

CASE(k11_flush_without_a_daemon_fails_in_the_end) {
  Rig rig;  // queue_if_no_daemon
  Io write = rig.file->write(64, 8, kNew);
  EVENTUALLY(rig.target->status().bios_parked == 1);
  Io ended = suspend(rig, DMU_SKIP_LOCKFS);
  CHECK_EQ(ended.result(Ms(40'000)), 0);
  CHECK_EQ(write.result(), -EIO);
  CHECK_EQ(rig.target->resume(), 0);
}

CASE(k11_flush_waits_for_a_new_daemon) {
  Rig rig;
  Io write = rig.file->write(64, 8, kNew);
  EVENTUALLY(rig.target->status().bios_parked == 1);
  Io ended = suspend(rig, DMU_SKIP_LOCKFS);
  Channel channel(*rig.target);
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  channel.send(map_plain(fault.id, fault.sector, fault.len, 1, fault.sector));
  CHECK_EQ(write.result(), 8 * 512);
  CHECK_EQ(ended.result(), 0);
  CHECK_EQ(rig.target->resume(), 0);
}

CASE(k11_fail_if_no_daemon) {
  Rig rig(fail_soon);
  CHECK_EQ(rig.file->write(0, 8, kNew).result(), -EIO);  // none ever came
  auto channel = std::make_unique<Channel>(*rig.target);
  rig.push_overlay(*channel);
  rig.promote(*channel, 0, 8, kNew);
  Io sync = rig.file->sync();
  channel->expect(DMU_MSG_FLUSH);
  channel->close();
  CHECK_EQ(sync.result(), -EIO);
  CHECK_READS(*rig.file, 0, 8, kNew);  // what is mapped goes on
  channel = std::make_unique<Channel>(*rig.target);
  CHECK_EQ(channel->replayed.size(), 1U);
}

CASE(k11_suspend_waits_for_a_copy_and_no_more) {
  Ram ram;
  auto slow = linear_over(ram);
  Rig rig(slow.get(), nullptr);
  Channel channel(*rig.target);
  rig.push_overlay(channel, 64);
  slow->hold();
  Io first = rig.file->write(0, 8, 10);
  EVENTUALLY(rig.in_flight() == 1);
  Io second = rig.file->write(8, 8, 11);  // waits for the granule
  EVENTUALLY(rig.in_flight() == 2);
  Io ended = suspend(rig, DMU_NOFLUSH);
  channel.expect_silence();
  CHECK(!ended.done());
  slow->release();
  CHECK_EQ(ended.result(), 0);
  CHECK_EQ(rig.target->resume(), 0);
  CHECK_EQ(first.result(), 8 * 512);
  CHECK_EQ(second.result(), 8 * 512);
  CHECK_READS(*rig.file, 0, 8, 10);
  CHECK_READS(*rig.file, 8, 8, 11);
  CHECK_READS(*rig.file, 16, 48, kBase);
}

CASE(k11_reload_keeps_uncommitted_promotions) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  rig.push_overlay(*channel);
  rig.promote(*channel, 0, 16, kNew);
  uint64_t gen = rig.target->status().gen;
  CHECK_EQ(rig.target->reload(kSize, both(rig), DMU_NOFLUSH), 0);
  CHECK_EQ(rig.target->status().uncommitted, 2U);
  CHECK(rig.target->status().gen > gen);
  channel->send(dmu_msg_committed(channel->seq));  // the channel lives on
  CHECK_EQ(rig.target->status().uncommitted, 0U);
  CHECK_EQ(rig.file->write(64, 8, kNew).result(), 8 * 512);
  channel->close();
  CHECK_EQ(rig.target->reload(kSize, both(rig), DMU_NOFLUSH), 0);  // and with no daemon at all
  channel = std::make_unique<Channel>(*rig.target);
  CHECK_EQ(channel->replayed.size(), 1U);
  CHECK_EQ(channel->replayed[0].sector, 64U);
}

CASE(k11_reload_with_bios_parked) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  Io io = rig.file->write(0, 8, kNew);
  channel->expect(DMU_MSG_FAULT);
  CHECK_EQ(rig.target->reload(kSize, both(rig), DMU_NOFLUSH), 0);
  dmu_msg fault = channel->expect(DMU_MSG_FAULT);
  channel->send(map_plain(fault.id, fault.sector, fault.len, 1, fault.sector));
  CHECK_EQ(io.result(), 8 * 512);
}

CASE(k11_reload_to_fewer_destinations) {
  Ram extra;
  fill_disk(extra.path(), 0, kSize, 9);
  Rig rig;
  CHECK_EQ(rig.target->reload(kSize, {{rig.base, true}, {rig.cow, false}, {&extra, false}}, DMU_NOFLUSH), 0);
  Channel channel(*rig.target);
  dmu_msg there = map_plain(0, 0, 1024, 2, 0), here = map_plain(0, 1024, 1024, 1, 1024);
  dmu_map_push(&there, channel.gen);
  dmu_map_push(&here, channel.gen);
  channel.send(there);
  channel.send(here);
  CHECK_READS(*rig.file, 0, 8, 9);
  uint64_t gen = rig.target->status().gen;
  CHECK_EQ(rig.target->reload(kSize, both(rig), DMU_NOFLUSH), 0);
  CHECK(rig.target->status().gen > gen);
  CHECK_EQ(rig.target->status().extents, 1U);
  CHECK_READS(*rig.file, 1024, 8, kCow);
  Io read = rig.file->read(0, 8);
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  CHECK_EQ(channel.try_send(map_plain(fault.id, 0, 1024, 2, 0)), -ENXIO);
  CHECK_EQ(read.result(), -EIO);
}

CASE(k11_reload_to_a_smaller_destination) {
  Rig rig;
  Channel channel(*rig.target);
  Dm small("small", linear(0, 2048, *rig.cow, 0));
  dmu_msg low = map_plain(0, 0, 1024, 1, 0), high = map_plain(0, 4096, 1024, 1, 4096);
  dmu_map_push(&low, channel.gen);
  dmu_map_push(&high, channel.gen);
  channel.send(low);
  channel.send(high);
  // rig.cow is in the live table too: the small one is a window into it.
  CHECK_EQ(rig.target->reload(kSize, {{rig.base, true}, {&small, false}}, DMU_NOFLUSH), 0);
  CHECK_EQ(rig.target->status().extents, 1U);
  CHECK_READS(*rig.file, 0, 8, kCow);
  rig.file.reset();
  channel.close();
  CHECK_EQ(rig.target->remove(), 0);
}

CASE(k11_reload_makes_it_larger) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  rig.promote(channel, 0, 8, kNew);
  fill_disk(rig.base->path(), kSize, kSize, kBase);
  CHECK_EQ(rig.target->reload(2 * kSize, both(rig), DMU_NOFLUSH), 0);
  CHECK_EQ(Path(rig.target->path()).sectors(), 2 * kSize);
  CHECK_READS(*rig.file, 0, 8, kNew);
  Io read = rig.file->read(kSize, 8);
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  channel.send(map_plain(fault.id, kSize, kSize, 1, kSize));
  CHECK_EQ(read.result(), 8 * 512);
}

CASE(k11_suspended_device_is_attached_and_served_after_resume) {
  Rig rig;
  CHECK_EQ(rig.target->suspend(DMU_NOFLUSH), 0);
  Channel channel(*rig.target);
  Io read = rig.file->read(0, 8);
  CHECK_EQ(rig.target->suspend(DMU_NOFLUSH), 0);  // again
  CHECK_EQ(rig.target->resume(), 0);
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  channel.send(map_plain(fault.id, 0, kSize, 1, 0));
  CHECK_EQ(read.result(), 8 * 512);
}

CASE_WITHIN(k11_suspends_under_load, 120'000) {
  Rig rig;
  CowStore store;
  auto cow = std::make_unique<Cow>(*rig.target, store);
  std::atomic<bool> stop{false};
  std::vector<Io> load;
  for (uint64_t w = 0; w < 3; w++)
    load.emplace_back([&, w] {
      for (uint64_t n = 0; !stop; n++) {
        long r = rig.file->write_now((n * 24 + w * 5000) / 8 * 8 % (kSize - 64), 64, kNew);
        if (r == 64 * 512 && n % 8 == 0) r = rig.file->sync_now() == 0 ? r : -EIO;
        if (r != 64 * 512) return r;
      }
      return 0L;
    });
  for (int round = 0; round < 12; round++) {
    if (round % 4 == 2) cow->kill();
    if (round % 3 == 0)
      CHECK_EQ(rig.target->reload(kSize, both(rig), DMU_NOFLUSH), 0);
    else
      CHECK_EQ(rig.target->suspend(round % 4 == 1 ? DMU_SKIP_LOCKFS : DMU_NOFLUSH), 0);
    CHECK_EQ(rig.target->resume(), 0);
    if (round % 4 == 2) cow = std::make_unique<Cow>(*rig.target, store);
  }
  stop = true;
  for (Io& io : load) CHECK_EQ(io.result(), 0);
  cow->kill();
  cow->check();
  CHECK_READS(File(rig.base->path()), 0, kSize, kBase);
}
