// SPDX-License-Identifier: GPL-2.0-or-later
// K9: large I/O is not cut at a block size, only where an extent or a run of bits
// ends; parts of a parked bio complete as one.
#include <cerrno>
#include <random>

#include "tests/kernel/target.hh"

using namespace dmutest;

namespace {

constexpr uint64_t kMiB = 2048;  // sectors

struct Counts {
  uint64_t reads, writes;
};

// How many bios reach the disk when 4 MiB are written and read in pieces of 1 MiB.
Counts count_through(const File& file, const Disk& disk) {
  uint64_t reads = disk.stat(kStatReads), writes = disk.stat(kStatWrites);
  for (uint64_t at = 0; at < 4 * kMiB; at += kMiB) CHECK_EQ(file.write_now(at, kMiB, kNew), static_cast<long>(kMiB * 512));
  writes = disk.stat(kStatWrites) - writes;
  for (uint64_t at = 0; at < 4 * kMiB; at += kMiB) {
    Buffer buf(kMiB);
    CHECK_EQ(file.read_now(at, buf), static_cast<long>(kMiB * 512));
  }
  return {disk.stat(kStatReads) - reads, writes};
}

Counts count_linear(const Disk& disk) {
  auto linear = linear_over(disk);
  return count_through(File(linear->path()), disk);
}

}  // namespace

CASE(k09_plain_extents_do_not_cut) {
  Rig rig;
  Channel channel(*rig.target);
  dmu_msg map = map_plain(0, 0, kSize, 1, 0);
  dmu_map_push(&map, channel.gen);
  channel.send(map);
  Counts ours = count_through(*rig.file, *rig.cow);
  Ram ram;
  Counts theirs = count_linear(ram);
  CHECK_EQ(ours.writes, theirs.writes);
  CHECK_EQ(ours.reads, theirs.reads);
}

CASE(k09_promoted_runs_do_not_cut) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  Counts first = count_through(*rig.file, *rig.cow);  // the first write promotes
  channel.expect_promoted(4 * kMiB);
  Counts ours = count_through(*rig.file, *rig.cow);
  Ram ram;
  Counts theirs = count_linear(ram);
  CHECK_EQ(ours.writes, theirs.writes);
  CHECK_EQ(ours.reads, theirs.reads);
  CHECK_EQ(first.writes, theirs.writes);  // whole granules: nothing to copy, nothing to cut
}

CASE(k09_runs_of_the_base_do_not_cut) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  uint64_t before = rig.base->stat(kStatReads);
  Buffer buf(kMiB);
  CHECK_EQ(rig.file->read_now(0, buf), static_cast<long>(kMiB * 512));
  uint64_t ours = rig.base->stat(kStatReads) - before;
  auto linear = linear_over(*rig.base);
  File file(linear->path());
  before = rig.base->stat(kStatReads);
  CHECK_EQ(file.read_now(0, buf), static_cast<long>(kMiB * 512));
  CHECK_EQ(ours, rig.base->stat(kStatReads) - before);
}

CASE(k09_cut_where_bits_change) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  for (uint64_t i = 0; i < 16; i++) rig.promote(channel, i * 128 + 64, 8, kNew);
  for (uint64_t i = 0; i < 16; i++) {
    CHECK_READS(*rig.file, i * 128, 64, kBase);
    CHECK_READS(*rig.file, i * 128 + 64, 8, kNew);
  }
  Buffer buf(kMiB);  // and in one piece
  CHECK_EQ(rig.file->read_now(0, buf), static_cast<long>(kMiB * 512));
  for (uint64_t i = 0; i < kMiB; i++) CHECK_EQ(buf.seed_of(i, 0), i % 128 >= 64 && i % 128 < 72 ? kNew : kBase);
}

CASE(k09_parked_bio_over_many_extents) {
  Rig rig;
  Channel channel(*rig.target);
  Buffer got(kMiB);
  Io io([&] { return rig.file->read_now(0, got); });
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  for (uint64_t at = 8; at < kMiB; at += 8) {
    dmu_msg map = map_plain(0, at, 8, at / 8 % 2, at);
    if (at / 8 % 2 == 0) {
      map.write_dest = DMU_DEST_NONE;
      map.write_sector = 0;
    }
    dmu_map_push(&map, fault.gen);
    channel.send(map);
  }
  dmu_msg map = map_plain(fault.id, 0, 8, 0, 0);
  map.write_dest = DMU_DEST_NONE;
  map.write_sector = 0;
  channel.send(map);
  CHECK_EQ(io.result(), static_cast<long>(kMiB * 512));
  for (uint64_t i = 0; i < kMiB; i++) CHECK_EQ(got.seed_of(i, 0), i / 8 % 2 ? kCow : kBase);
  CHECK_EQ(rig.target->status().faults, 1U);
}

CASE(k09_one_failed_part_fails_the_bio) {
  Ram ram;
  Dm bad("bad", linear(0, Ram::kSectors, ram, 0));
  Rig rig(nullptr, &bad);
  Channel channel(*rig.target);
  Io io = rig.file->read(0, 256);
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  bad.reload(linear(0, 64, ram, 0) + error(64, 8) + linear(72, Ram::kSectors - 72, ram, 72));
  for (uint64_t at = 8; at < 256; at += 8) {
    dmu_msg map = map_plain(0, at, 8, 1, at);
    dmu_map_push(&map, fault.gen);
    channel.send(map);
  }
  channel.send(map_plain(fault.id, 0, 8, 1, 0));
  CHECK_EQ(io.result(), -EIO);
  CHECK_READS(*rig.file, 0, 64, kCow);
  CHECK_EQ(rig.target->status().bios_parked, 0U);
}

CASE(k09_zero_extents) {
  Rig rig;
  Channel channel(*rig.target);
  dmu_msg map = dmu_msg_map(0, 0, kSize);
  dmu_map_read(&map, DMU_DEST_ZERO, 0);
  dmu_map_push(&map, channel.gen);
  channel.send(map);
  CHECK_READS(*rig.file, 0, kSize, kZeroes);
  Io write = rig.file->write(64, 64, kNew);  // reads and writes fault separately
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  CHECK_EQ(fault.flags & (DMU_F_READ | DMU_F_WRITE), DMU_F_WRITE);
  channel.send(map_plain(fault.id, 64, 64, 1, 64));
  CHECK_EQ(write.result(), 64 * 512);
  CHECK_READS(*rig.file, 0, 64, kZeroes);
  CHECK_READS(*rig.file, 64, 64, kNew);
  CHECK_READS(*rig.file, 128, 64, kZeroes);
}

CASE(k09_unaligned_pieces_of_every_size) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel, 64);
  std::vector<Seed> truth(kSize, kBase);
  std::minstd_rand random(9);
  for (Seed n = 10; n < 210; n++) {
    uint64_t len = 1 + random() % 600, at = random() % (kSize - len);
    CHECK_EQ(rig.file->write(at, len, n).result(), static_cast<long>(len * 512));
    for (uint64_t i = at; i < at + len; i++) truth[i] = n;
    while (channel.next(Ms(0))) {
    }
  }
  Buffer buf(kSize);
  CHECK_EQ(rig.file->read_now(0, buf), static_cast<long>(kSize * 512));
  for (uint64_t i = 0; i < kSize; i++) CHECK_EQ(buf.seed_of(i, 0), truth[i]);
}
