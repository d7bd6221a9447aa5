// SPDX-License-Identifier: GPL-2.0-or-later
// K4: a failed copy fails the bio and installs nothing. A write that covers a
// whole granule copies nothing.
#include <cerrno>
#include <vector>

#include "tests/kernel/target.hh"

using namespace dmutest;

namespace {

constexpr uint32_t kBig = 128;  // sectors of a granule that is worth copying

}  // namespace

CASE(k04_failed_copy_fails_the_write) {
  Ram ram;
  Dm base("bad", linear(0, Ram::kSectors, ram, 0));
  Rig rig(&base, nullptr);
  Channel channel(*rig.target);
  rig.push_overlay(channel, kBig);
  // Granule 1 cannot be read any more.
  base.reload(linear(0, kBig, ram, 0) + error(kBig, kBig) + linear(2 * kBig, Ram::kSectors - 2 * kBig, ram, 2 * kBig));
  CHECK_EQ(rig.file->write(kBig + 8, 8, kNew).result(), -EIO);
  CHECK_EQ(rig.file->write(8, 8, kNew).result(), 8 * 512);  // its neighbour is not affected
  channel.expect_promoted(kBig);
  channel.expect_silence();
  CHECK(channel.promoted.empty());
  CHECK_EQ(rig.target->status().uncommitted, 1U);

  base.reload(linear(0, Ram::kSectors, ram, 0));
  CHECK_READS(*rig.file, kBig, kBig, kBase);  // nothing was installed
  rig.file->fill(kBig + 8, 8, kNew);
  CHECK_READS(*rig.file, kBig, 8, kBase);
  CHECK_READS(*rig.file, kBig + 8, 8, kNew);
  CHECK_READS(*rig.file, kBig + 16, kBig - 16, kBase);
}

CASE(k04_failed_copy_of_copy_first) {
  Ram ram;
  Dm base("bad", linear(0, Ram::kSectors, ram, 0));
  Rig rig(&base, nullptr);
  Channel channel(*rig.target);
  dmu_msg map = dmu_msg_map(0, 0, kBig);
  dmu_map_read(&map, 0, 0);
  dmu_map_write(&map, 1, 0);
  map.flags = DMU_F_COPY_FIRST;
  dmu_map_push(&map, channel.gen);
  channel.send(map);
  base.reload(error(0, Ram::kSectors));
  CHECK_EQ(rig.file->write(8, 8, kNew).result(), -EIO);
  base.reload(linear(0, Ram::kSectors, ram, 0));
  CHECK_READS(*rig.file, 0, kBig, kBase);
}

CASE(k04_failed_write_is_not_promoted) {
  Ram ram;
  Dm cow("bad", linear(0, Ram::kSectors, ram, 0));
  Rig rig(nullptr, &cow);
  Channel channel(*rig.target);
  rig.push_overlay(channel, kBig);
  cow.reload(error(0, Ram::kSectors));
  CHECK_EQ(rig.file->write(0, kBig, kNew).result(), -EIO);       // whole: its own write fails
  CHECK_EQ(rig.file->write(kBig + 8, 8, kNew).result(), -EIO);   // part: the copy's write fails
  CHECK_READS(*rig.file, 0, 2 * kBig, kBase);
  channel.expect_silence();
  CHECK(channel.promoted.empty());
  CHECK_EQ(rig.target->status().uncommitted, 0U);
}

CASE(k04_whole_granules_copy_nothing) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel, kBig);
  rig.promote(channel, 0, kBig, kNew);
  rig.promote(channel, 4 * kBig, 8 * kBig, kNew);
  dmu_status status = rig.target->status();
  CHECK_EQ(status.copies, 0U);
  CHECK_EQ(status.copied_sectors, 0U);
  CHECK_EQ(status.promotions, 9U);
  CHECK_READS(*rig.file, 0, kBig, kNew);
  CHECK_READS(*rig.file, kBig, 3 * kBig, kBase);
  CHECK_READS(*rig.file, 4 * kBig, 8 * kBig, kNew);
}

CASE(k04_whole_granules_need_no_base) {
  Ram ram;
  Dm base("bad", linear(0, Ram::kSectors, ram, 0));
  Rig rig(&base, nullptr);
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  base.reload(error(0, Ram::kSectors));
  rig.promote(channel, 0, 64, kNew);
  CHECK_READS(*rig.file, 0, 64, kNew);
  Buffer buf(8);
  CHECK_EQ(rig.file->read_now(64, buf), -EIO);
}

CASE(k04_copies_only_what_is_not_covered) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel, kBig);
  CHECK_EQ(rig.file->write(kBig - 8, 16, kNew).result(), 16 * 512);  // the end of one, the start of the next
  channel.expect_promoted(2 * kBig);
  dmu_status status = rig.target->status();
  CHECK_EQ(status.promotions, 2U);
  CHECK_EQ(status.copied_sectors, 2U * (kBig - 8));
  CHECK_READS(*rig.file, 0, kBig - 8, kBase);
  CHECK_READS(*rig.file, kBig - 8, 16, kNew);
  CHECK_READS(*rig.file, kBig + 8, kBig - 8, kBase);
  CHECK_READS(File(rig.base->path()), 0, kSize, kBase);
}

CASE(k04_rest_of_a_granule_over_nothing_is_zeroed) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel, kBig, 0, DMU_DEST_ZERO);
  CHECK_READS(*rig.file, 0, kBig, kZeroes);
  CHECK_EQ(rig.file->write(8, 8, kNew).result(), 8 * 512);
  channel.expect_promoted(kBig);
  CHECK_READS(*rig.file, 0, 8, kZeroes);
  CHECK_READS(*rig.file, 8, 8, kNew);
  CHECK_READS(*rig.file, 16, 4 * kBig - 16, kZeroes);
}

// The kernel's copier sleeps where a disk takes no more commands: that of one device only.
CASE_WITHIN(k04_a_base_that_hangs_holds_up_no_other_device, 120'000) {
  constexpr int kOthers = 24;
  // One command at a time: who submits the next one sleeps until it has ended.
  Scsi hangs({"dev_size_mb=16", "max_queue=1", "delay=0"});
  Ram base, cow;
  struct Device {
    Device(const Disk& from, const Disk& to) : target(4096, {{&from, true}, {&to, false}}), file(target.path()), channel(target) {
      dmu_msg map = map_overlay(0, 4096, 0, 64);
      dmu_map_push(&map, channel.gen);
      channel.send(map);
      channel.send(dmu_msg_bitmap(0, channel.gen, 0, 4096, nullptr, 0));
    }
    Target target;
    File file;
    Channel channel;
  };
  Device stuck(hangs, cow);
  std::vector<std::unique_ptr<Device>> others;
  for (int i = 0; i < kOthers; i++) others.push_back(std::make_unique<Device>(base, cow));
  hangs.slow(Ms(4000));
  std::vector<Io> waiting, done;
  for (uint64_t i = 0; i < 4; i++) waiting.push_back(stuck.file.write(i * 64, 8, kNew));
  EVENTUALLY(hangs.stat(kStatInFlight) == 1);
  for (const auto& other : others) done.push_back(other->file.write(1024, 8, kNew));
  for (Io& io : done) CHECK_EQ(io.result(), 8 * 512);
  CHECK(!waiting.front().done());  // later ones end later than whoever waited behind the first
  // Four commands and more, one after the other.
  for (Io& io : waiting) CHECK_EQ(io.result(Ms(60'000)), 8 * 512);
}

CASE(k04_copy_first) {
  Rig rig;
  Channel channel(*rig.target);
  Io read = rig.file->read(0, 8);
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  dmu_msg map = dmu_msg_map(fault.id, 0, kBig);
  dmu_map_read(&map, 0, 512);
  dmu_map_write(&map, 1, 1024);
  map.flags = DMU_F_COPY_FIRST;
  channel.send(map);
  CHECK_EQ(read.result(), 8 * 512);
  Buffer buf(8);
  CHECK_EQ(rig.file->read_now(0, buf), 8 * 512);
  CHECK_EQ(buf.seed_of(0, 512), kBase);
  CHECK_EQ(rig.file->write(8, 8, kNew).result(), 8 * 512);
  CHECK_READS(*rig.file, 8, 8, kNew);
  CHECK_EQ(rig.file->read_now(0, buf), 8 * 512);
  CHECK_EQ(buf.seed_of(0, 512), kBase);  // copied to the write side
  CHECK_EQ(rig.target->status().copied_sectors, kBig - 8U);
  Buffer there(8);
  CHECK_EQ(File(rig.cow->path()).read_now(1024 + 16, there), 8 * 512);
  CHECK_EQ(there.seed_of(0, 512 + 16), kBase);
}

CASE(k04_granule_at_the_end_of_the_device) {
  constexpr uint64_t kOdd = kSize - 24;  // no multiple of the granule
  Rig rig({}, kOdd);
  fill_disk(rig.cow->path(), kOdd, 24, kCow);
  Channel channel(*rig.target);
  rig.push_overlay(channel, kBig);
  CHECK_EQ(rig.file->write(kOdd - 8, 8, kNew).result(), 8 * 512);
  channel.expect(DMU_MSG_PROMOTED);
  CHECK_READS(*rig.file, kOdd - (kBig - 24), kBig - 32, kBase);
  CHECK_READS(*rig.file, kOdd - 8, 8, kNew);
  CHECK_READS(File(rig.cow->path()), kOdd, 24, kCow);  // nothing is copied beyond the end
}
