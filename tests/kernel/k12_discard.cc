// SPDX-License-Identifier: GPL-2.0-or-later
// K12: in an overlay the kernel serves discards itself: passed down where granules
// are promoted, done with on the rest, no bit unset, nobody asked.
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "tests/kernel/cow.hh"

using namespace dmutest;

namespace {

void with_discards(dmu_spec& spec) { spec.discard_granularity = 4096; }

void with_write_zeroes(dmu_spec& spec) {
  spec.discard_granularity = 4096;
  spec.write_zeroes = 1;
}

}  // namespace

CASE(k12_discard_of_an_overlay) {
  Null cow;
  Rig rig(nullptr, &cow, with_discards);
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  rig.promote(channel, 64, 64, kNew);
  channel.send(dmu_msg_committed(channel.seq));
  uint64_t faults = rig.target->status().faults;
  CHECK_EQ(rig.file->discard(0, 4096).result(), 0);
  channel.expect_silence();
  CHECK_EQ(rig.target->status().faults, faults);
  CHECK(rig.target->status().discards > 0);
  CHECK_READS(*rig.file, 0, 64, kBase);
  CHECK_READS(*rig.file, 128, 4096 - 128, kBase);
  CHECK_READS(*rig.file, 64, 64, kZeroes);  // passed down; the bits are still set
  CHECK_READS(File(cow.path()), 0, 64, kCow);  // and only where they are
  CHECK_READS(File(cow.path()), 128, 64, kCow);
  CHECK_EQ(rig.file->write(64, 8, 5).result(), 8 * 512);  // no first write
  channel.expect_silence();
  CHECK(channel.promoted.empty());
}

CASE(k12_discard_over_disks_that_cannot) {
  Rig rig(with_discards);  // brd of 6.1 has no discard
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  rig.promote(channel, 64, 64, kNew);
  CHECK_EQ(rig.file->discard(0, 4096).result(), 0);
  channel.expect_silence();
  CHECK_READS(*rig.file, 0, 64, kBase);
}

CASE(k12_discard_with_leaves_missing) {
  Null cow(64);
  Rig rig(nullptr, &cow, with_discards);
  Channel channel(*rig.target);
  Io read = rig.file->read(0, 8);
  channel.send(map_overlay(channel.expect(DMU_MSG_FAULT).id, kSize, 0, kGranule));
  dmu_msg leaf = channel.expect(DMU_MSG_FAULT);
  Io discard = rig.file->discard(0, kSize);
  // It may need the leaf, and then waits with the read for the one answer.
  channel.expect_silence();
  channel.send(dmu_msg_bitmap(leaf.id, 0, leaf.sector, leaf.len, nullptr, 0));
  CHECK_EQ(read.result(), 8 * 512);
  CHECK_EQ(discard.result(), 0);
  CHECK_EQ(rig.target->status().faults, 2U);
  CHECK_READS(*rig.file, 0, kSize, kBase);
}

CASE(k12_discard_of_plain_extents_asks) {
  Null cow;
  Rig rig(nullptr, &cow, with_discards);
  Channel channel(*rig.target);
  dmu_msg map = map_plain(0, 0, kSize, 1, 0);
  dmu_map_push(&map, channel.gen);
  channel.send(map);
  Io discard = rig.file->discard(64, 64);  // only the daemon knows whether space is freed
  dmu_msg asked = channel.expect(DMU_MSG_DISCARD);
  CHECK_EQ(asked.sector, 64U);
  CHECK_EQ(asked.len, 64U);
  channel.send(dmu_msg_ack(asked.id));
  CHECK_EQ(discard.result(), 0);
  CHECK_READS(*rig.file, 0, 256, kCow);
}

CASE(k12_discard_answered_with_a_map) {
  Null cow;
  Rig rig(nullptr, &cow, with_discards);
  Channel channel(*rig.target);
  Io discard = rig.file->discard(64, 64);
  dmu_msg asked = channel.expect(DMU_MSG_DISCARD);
  channel.send(map_plain(asked.id, asked.sector, asked.len, 1, asked.sector));
  CHECK_EQ(discard.result(), 0);
  CHECK_READS(File(cow.path()), 64, 64, kZeroes);
  CHECK_READS(File(cow.path()), 128, 64, kCow);
}

CASE(k12_write_zeroes_promotes) {
  Loop base, cow;
  Rig rig(&base, &cow, with_write_zeroes);
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  CHECK_EQ(rig.file->zeroout(64, 64).result(), 0);
  channel.expect_promoted(64);
  CHECK_READS(*rig.file, 0, 64, kBase);
  CHECK_READS(*rig.file, 64, 64, kZeroes);
  CHECK_READS(*rig.file, 128, 64, kBase);
  CHECK_EQ(rig.file->zeroout(68, 4).result(), 0);   // a part of what is promoted
  CHECK_EQ(rig.file->zeroout(260, 4).result(), 0);  // and of what is not
  CHECK_READS(*rig.file, 256, 4, kBase);
  CHECK_READS(*rig.file, 260, 4, kZeroes);
}

CASE(k12_zero_answered_with_a_map) {
  Loop base, cow;
  Rig rig(&base, &cow, with_write_zeroes);
  Channel channel(*rig.target);
  Io zero = rig.file->zeroout(64, 64);
  dmu_msg asked = channel.expect(DMU_MSG_ZERO);
  channel.send(map_plain(asked.id, asked.sector, asked.len, 1, asked.sector));
  CHECK_EQ(zero.result(), 0);
  CHECK_READS(File(cow.path()), 64, 64, kZeroes);
  CHECK_READS(File(cow.path()), 0, 64, kCow);
}

CASE(k12_zeroes_without_the_feature) {
  Rig rig;
  CHECK_EQ(Path(rig.target->path()).queue("write_zeroes_max_bytes"), "0");
  CHECK_EQ(Path(rig.target->path()).queue("discard_max_bytes"), "0");
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  CHECK_EQ(rig.file->zeroout(64, 64).result(), 0);  // the block layer writes them
  channel.expect_promoted(64);
  CHECK_READS(*rig.file, 64, 64, kZeroes);
}

CASE_WITHIN(k12_fstrim_asks_nobody, 120'000) {
  Null cow(64);
  Rig rig(nullptr, &cow, with_discards, 65536);
  CowStore store;
  Cow daemon(*rig.target, store);
  run({"mkfs.ext4", "-q", "-F", "-E", "nodiscard", rig.target->path()});
  std::string dir = "/run/dmut-" + std::to_string(getpid());
  CHECK_EQ(mkdir(dir.c_str(), 0700), 0);
  run({"mount", rig.target->path(), dir});
  run({"dd", "if=/dev/urandom", "of=" + dir + "/kept", "bs=64k", "count=16", "conv=fsync", "status=none"});
  std::string sum = run({"sha256sum", dir + "/kept"});
  run({"dd", "if=/dev/urandom", "of=" + dir + "/gone", "bs=64k", "count=64", "conv=fsync", "status=none"});
  run({"rm", dir + "/gone"});
  run({"sync", "-f", dir});
  uint64_t faults = rig.target->status().faults, discards = rig.target->status().discards;
  run({"fstrim", "-v", dir});
  CHECK_EQ(rig.target->status().faults, faults);
  CHECK(rig.target->status().discards > discards);
  CHECK_EQ(daemon.count(DMU_MSG_DISCARD), 0U);
  run({"umount", dir});
  run({"mount", rig.target->path(), dir});
  CHECK_EQ(run({"sha256sum", dir + "/kept"}), sum);
  run({"umount", dir});
  rmdir(dir.c_str());
  run({"e2fsck", "-fn", rig.target->path()});
  daemon.kill();
  daemon.check();
  CHECK_READS(File(rig.base->path()), 0, 65536, kBase);
}
