// SPDX-License-Identifier: GPL-2.0-or-later
// K6: flushes reach the daemon over any destination, and only when something is
// uncommitted; the destinations come first. A FUA write waits for its own granules.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/uio.h>

#include <cerrno>

#include "tests/kernel/target.hh"

using namespace dmutest;

CASE(k06_flush_reaches_the_daemon_over_disks_without_a_cache) {
  Rig rig;
  CHECK_EQ(rig.cow->queue("write_cache"), "write through");
  CHECK_EQ(Path(rig.target->path()).queue("write_cache"), "write back");
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  rig.promote(channel, 0, 8, kNew);
  uint64_t seq = channel.seq;
  Io sync = rig.file->sync();
  dmu_msg flush = channel.expect(DMU_MSG_FLUSH);
  CHECK_EQ(flush.seq, seq);
  CHECK(!sync.done());
  channel.send(dmu_msg_ack(flush.id));
  CHECK_EQ(sync.result(), 0);
  dmu_status status = rig.target->status();
  CHECK_EQ(status.uncommitted, 0U);  // ACK counts as COMMITTED
  CHECK_EQ(status.daemon_flushes, 1U);
}

CASE(k06_nothing_uncommitted_asks_nobody) {
  Rig rig;
  Channel channel(*rig.target);
  CHECK_EQ(rig.file->sync().result(), 0);
  rig.push_overlay(channel);
  rig.promote(channel, 0, 8, kNew);
  channel.send(dmu_msg_committed(channel.seq));
  CHECK_EQ(rig.file->sync().result(), 0);
  CHECK_EQ(rig.file->write(0, 8, 4).result(), 8 * 512);  // no first write
  CHECK_EQ(rig.file->sync().result(), 0);
  channel.close();
  CHECK_EQ(rig.file->sync().result(), 0);  // nor does anybody have to be there
  CHECK_EQ(rig.target->status().daemon_flushes, 0U);
}

CASE(k06_every_destination_is_flushed) {
  Null base, cow;
  Rig rig(&base, &cow);
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  CHECK_EQ(rig.file->write(0, 8, kNew).result(), 8 * 512);
  channel.expect_promoted(8);
  uint64_t before = cow.stat(kStatFlushes);
  Io sync = rig.file->sync();
  dmu_msg flush = channel.expect(DMU_MSG_FLUSH);
  CHECK(cow.stat(kStatFlushes) > before);  // by now, not after the ACK
  channel.send(dmu_msg_ack(flush.id));
  CHECK_EQ(sync.result(), 0);
  before = cow.stat(kStatFlushes);
  CHECK_EQ(rig.file->sync().result(), 0);  // and also when the daemon is not asked
  CHECK(cow.stat(kStatFlushes) > before);
}

CASE(k06_destinations_first) {
  Null null;
  auto slow = linear_over(null);
  Rig rig(nullptr, slow.get());
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  rig.promote(channel, 0, 8, kNew);
  slow->hold();
  Io sync = rig.file->sync();
  channel.expect_silence();
  CHECK(!sync.done());
  slow->release();
  channel.send(dmu_msg_ack(channel.expect(DMU_MSG_FLUSH).id));
  CHECK_EQ(sync.result(), 0);
}

CASE(k06_flush_covers_what_was_complete) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  rig.promote(channel, 0, 8, kNew);
  uint64_t seq = channel.seq;
  Io sync = rig.file->sync();
  dmu_msg flush = channel.expect(DMU_MSG_FLUSH);
  CHECK(flush.seq >= seq);
  rig.promote(channel, 64, 8, kNew);  // while the daemon commits
  channel.send(dmu_msg_ack(flush.id));
  CHECK_EQ(sync.result(), 0);
  CHECK_EQ(rig.target->status().uncommitted, 1U);
}

CASE(k06_flush_is_read_after_its_promotions) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  for (uint64_t i = 0; i < 100; i++) CHECK_EQ(rig.file->write_now(i * 16, 8, kNew), 8 * 512);
  Io sync = rig.file->sync();
  dmu_msg flush = channel.expect(DMU_MSG_FLUSH);
  CHECK_EQ(channel.promoted.size(), 100U);
  CHECK_EQ(flush.seq, channel.seq);
  channel.send(dmu_msg_ack(flush.id));
  CHECK_EQ(sync.result(), 0);
}

// A write with O_DSYNC is a FUA bio and then a flush: which of the two the daemon
// hears of is told by the count of flushes that the device has seen.
CASE(k06_fua_waits_for_its_own_granules) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  Io write = rig.file->write(0, 8, kNew, RWF_DSYNC);
  dmu_msg flush = channel.expect(DMU_MSG_FLUSH);
  CHECK_EQ(rig.target->status().flushes, 0U);
  CHECK_EQ(channel.promoted.size(), 1U);  // promoted before it waits
  CHECK_READS(*rig.file, 0, 8, kNew);
  CHECK(!write.done());
  channel.send(dmu_msg_ack(flush.id));
  CHECK_EQ(write.result(), 8 * 512);
  CHECK_EQ(rig.target->status().daemon_flushes, 1U);
}

CASE(k06_fua_is_released_by_a_commit_of_the_daemon) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  Io write = rig.file->write(0, 8, kNew, RWF_DSYNC);
  dmu_msg flush = channel.expect(DMU_MSG_FLUSH);
  channel.send(dmu_msg_committed(channel.seq));
  CHECK_EQ(write.result(), 8 * 512);
  int r = channel.try_send(dmu_msg_ack(flush.id));  // late or not, both are normal
  CHECK(r == 0 || r == -ENOENT);
}

CASE(k06_fua_over_committed_granules_does_not_wait) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  rig.promote(channel, 0, 8, kNew);
  channel.send(dmu_msg_committed(channel.seq));
  rig.promote(channel, 64, 8, kNew);  // another one is uncommitted
  Io write = rig.file->write(0, 8, 4, RWF_DSYNC);
  dmu_msg flush = channel.expect(DMU_MSG_FLUSH);  // of the flush that follows
  CHECK(rig.target->status().flushes >= 1U);
  channel.send(dmu_msg_ack(flush.id));
  CHECK_EQ(write.result(), 8 * 512);
}

CASE(k06_volatile_never_asks) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel, kGranule, DMU_F_VOLATILE);
  rig.promote(channel, 0, 64, kNew);
  CHECK_EQ(rig.file->sync().result(), 0);
  CHECK_EQ(rig.file->write(64, 8, kNew, RWF_DSYNC).result(), 8 * 512);
  CHECK_EQ(rig.target->status().daemon_flushes, 0U);
  CHECK_EQ(rig.target->status().uncommitted, 0U);
}

CASE(k06_flush_waits_for_a_daemon) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  rig.push_overlay(*channel);
  rig.promote(*channel, 0, 8, kNew);
  channel->close();
  Io sync = rig.file->sync();
  EVENTUALLY(rig.target->status().bios_parked == 1);
  channel = std::make_unique<Channel>(*rig.target);
  CHECK_EQ(channel->replayed.size(), 1U);
  channel->send(dmu_msg_ack(channel->expect(DMU_MSG_FLUSH).id));
  CHECK_EQ(sync.result(), 0);
}

CASE(k06_sync_extent_holds_the_write) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel, kGranule, DMU_F_SYNC);
  Io write = rig.file->write(0, 8, kNew);
  dmu_msg done = channel.expect(DMU_MSG_DONE);
  CHECK_EQ(channel.promoted.size(), 1U);
  CHECK_EQ(done.seq, channel.promoted[0].seq);
  CHECK_EQ(done.sector, 0U);
  CHECK_EQ(done.len, 8U);
  CHECK(!write.done());
  channel.send(dmu_msg_ack(done.id));
  CHECK_EQ(write.result(), 8 * 512);
  CHECK_EQ(rig.file->write(0, 8, 4).result(), 8 * 512);  // only the write that promotes
  channel.expect_silence();
}

CASE(k06_large_preflush_and_data) {
  // A PREFLUSH with data comes as an empty flush and the data: mkfs and a journal do that.
  Rig rig;
  Channel channel(*rig.target);
  dmu_msg map = map_plain(0, 0, kSize, 1, 0);
  dmu_map_push(&map, channel.gen);
  channel.send(map);
  run({"mkfs.ext4", "-q", "-F", "-b", "4096", rig.target->path(), "1024"});
  run({"e2fsck", "-fn", rig.target->path()});
}
