// SPDX-License-Identifier: GPL-2.0-or-later
// K7: what a commit covers, what the kernel may forget, what a new daemon is told.
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <random>

#include "tests/kernel/cow.hh"

using namespace dmutest;

namespace {

void few_uncommitted(dmu_spec& spec) { spec.max_uncommitted = 4; }
void few_extents(dmu_spec& spec) { spec.max_extents = 16; }

}  // namespace

CASE(k07_replay_after_restart) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  CHECK(channel->replayed.empty());
  rig.push_overlay(*channel);
  rig.promote(*channel, 0, 16, kNew);
  rig.promote(*channel, 1024, 8, kNew);
  for (int restart = 0; restart < 3; restart++) {
    channel->close();
    channel = std::make_unique<Channel>(*rig.target);
    std::set<uint64_t> granules;
    for (const dmu_msg& msg : channel->replayed) {
      CHECK(msg.flags & DMU_F_REPLAY);
      CHECK_EQ(msg.write_dest, 1U);
      CHECK_EQ(msg.write_sector, msg.sector);
      CHECK(msg.seq > 0);
      for (uint64_t s = msg.sector; s < msg.sector + msg.len; s += kGranule) granules.insert(s);
    }
    CHECK(granules == (std::set<uint64_t>{0, 8, 1024}));
  }
  channel->send(dmu_msg_committed(channel->seq));
  CHECK_EQ(rig.target->status().uncommitted, 0U);
  channel->close();
  channel = std::make_unique<Channel>(*rig.target);
  CHECK(channel->replayed.empty());
  CHECK_READS(*rig.file, 0, 16, kNew);
}

CASE(k07_unread_promotions_are_replayed_too) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  rig.push_overlay(*channel);
  CHECK_EQ(rig.file->write(0, 8, kNew).result(), 8 * 512);  // PROMOTED is never read
  channel->close();
  CHECK_EQ(rig.file->write(64, 8, kNew).result(), 8 * 512);  // without any daemon
  channel = std::make_unique<Channel>(*rig.target);
  CHECK_EQ(channel->replayed.size(), 2U);
}

// A device that somebody else removes: the daemon still learns what it has to commit.
CASE(k07_promotions_are_told_after_removal) {
  Rig rig;
  auto read_one = [](Channel& channel, dmu_msg& msg) {
    ssize_t got = read(channel.fd(), &msg, sizeof msg);
    return got < 0 ? -errno : static_cast<int>(got);
  };
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  rig.promote(channel, 0, 8, kNew);
  CHECK_EQ(rig.file->write(64, 8, kNew).result(), 8 * 512);
  CHECK_EQ(rig.file->write(1024, 16, kNew).result(), 16 * 512);
  rig.file.reset();
  CHECK_EQ(rig.target->remove(), 0);
  std::set<uint64_t> told;
  dmu_msg msg{};
  int got = 0;
  while ((got = read_one(channel, msg)) > 0) {
    CHECK_EQ(msg.type, uint32_t{DMU_MSG_PROMOTED});
    for (uint64_t s = msg.sector; s < msg.sector + msg.len; s += kGranule) told.insert(s);
  }
  CHECK_EQ(got, -ENODEV);
  CHECK(told == (std::set<uint64_t>{64, 1024, 1032}));
}

CASE(k07_commit_covers_what_was_read) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  CHECK_EQ(channel.try_send(dmu_msg_committed(1)), -EINVAL);
  CHECK_EQ(rig.file->write(0, 8, kNew).result(), 8 * 512);
  CHECK_EQ(channel.try_send(dmu_msg_committed(1)), -EINVAL);  // told, not read
  channel.expect_promoted(8);
  CHECK_EQ(channel.try_send(dmu_msg_committed(channel.seq + 1)), -EINVAL);
  CHECK_EQ(rig.target->status().uncommitted, 1U);
  rig.promote(channel, 64, 8, kNew);
  channel.send(dmu_msg_committed(channel.seq - 1));
  CHECK_EQ(rig.target->status().uncommitted, 1U);
  channel.send(dmu_msg_committed(channel.seq - 1));  // again is fine
  channel.send(dmu_msg_committed(channel.seq));
  CHECK_EQ(rig.target->status().uncommitted, 0U);
}

CASE(k07_seqs_of_an_earlier_daemon_are_unread) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  rig.push_overlay(*channel);
  rig.promote(*channel, 0, 8, kNew);
  uint64_t seq = channel->seq;
  channel->close();
  channel = std::make_unique<Channel>(*rig.target, true);
  CHECK_EQ(channel->try_send(dmu_msg_committed(seq)), -EINVAL);
}

CASE(k07_replay_waits_for_io) {
  Ram ram;
  auto slow = linear_over(ram);
  Rig rig(nullptr, slow.get());
  auto channel = std::make_unique<Channel>(*rig.target);
  rig.push_overlay(*channel);
  rig.promote(*channel, 0, 8, kNew);
  slow->hold();
  Io rewrite = rig.file->write(0, 8, 4), first = rig.file->write(64, 8, 5);
  EVENTUALLY(rig.in_flight() == 2);
  channel->close();
  channel = std::make_unique<Channel>(*rig.target, true);
  CHECK(!channel->next(kNotYet));
  slow->release();
  std::set<uint64_t> granules;
  for (;;) {
    auto msg = channel->next(kSoon);
    CHECK(msg);
    if (msg->type == DMU_MSG_REPLAY_DONE) break;
    CHECK_EQ(msg->type, static_cast<uint32_t>(DMU_MSG_PROMOTED));
    granules.insert(msg->sector);
  }
  CHECK(granules.count(0));
  CHECK(granules.count(64));  // its I/O was under way when the daemon went
  CHECK_EQ(rewrite.result(), 8 * 512);
  CHECK_EQ(first.result(), 8 * 512);
}

CASE(k07_promoting_writes_park_past_the_limit) {
  Rig rig(few_uncommitted);
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  for (uint64_t i = 0; i < 4; i++) rig.promote(channel, i * 64, 8, kNew);
  Io fifth = rig.file->write(1024, 8, kNew);
  EVENTUALLY(rig.target->status().bios_parked == 1);
  channel.expect_silence();
  CHECK(!fifth.done());
  CHECK_EQ(rig.file->write(0, 8, 4).result(), 8 * 512);  // what is promoted is not held up
  CHECK_READS(*rig.file, 2048, 64, kBase);
  channel.send(dmu_msg_committed(channel.seq));
  CHECK_EQ(fifth.result(), 8 * 512);
}

// A daemon that is there, and commits nothing for 30 seconds.
CASE_WITHIN(k07_promoting_writes_park_after_a_time, 120'000) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  const auto began = Clock::now();
  rig.promote(channel, 0, 8, kNew);
  uint64_t at = 8;
  std::optional<Io> last;
  const auto parks = [&] {
    poll(nullptr, 0, 100);  // so that the device is not used up before
    last = rig.file->write(at, 8, kNew);
    at += 8;
    EVENTUALLY(last->done() || rig.target->status().bios_parked == 1);
    return !last->done();
  };
  eventually(__FILE__, __LINE__, "a promoting write parks", parks, Ms(45'000));
  CHECK(Clock::now() - began >= Ms(29'000));
  channel.expect_promoted(at - 16);
  channel.send(dmu_msg_committed(channel.seq));
  CHECK_EQ(last->result(), 8 * 512);
}

CASE(k07_promoting_writes_park_without_a_daemon) {
  Rig rig(few_uncommitted);
  auto channel = std::make_unique<Channel>(*rig.target);
  rig.push_overlay(*channel);
  channel->close();
  std::vector<Io> writes;
  for (uint64_t i = 0; i < 12; i++) writes.push_back(rig.file->write(i * 64, 8, kNew));
  EVENTUALLY(rig.target->status().bios_parked >= 8);
  CHECK(rig.target->status().uncommitted <= 4);
  channel = std::make_unique<Channel>(*rig.target);
  CHECK(channel->replayed.size() <= 4);
  auto end = Clock::now() + kSoon;
  for (bool all = false; !all;) {
    CHECK(Clock::now() < end);
    channel->next(Ms(20));
    channel->send(dmu_msg_committed(channel->seq));
    all = true;
    for (Io& io : writes) all &= io.done();
  }
  for (Io& io : writes) CHECK_EQ(io.result(), 8 * 512);
}

CASE(k07_nothing_is_forgotten_without_a_channel) {
  Rig rig(few_extents);
  auto channel = std::make_unique<Channel>(*rig.target);
  rig.push_overlay(*channel);
  rig.promote(*channel, 0, 64, kNew);
  dmu_status before = rig.target->status();
  channel->close();
  run({"sh", "-c", "echo 2 > /proc/sys/vm/drop_caches"});  // shrinkers, all of them
  dmu_status after = rig.target->status();
  CHECK_EQ(after.extents, before.extents);
  CHECK_EQ(after.leaves, before.leaves);
  CHECK_EQ(after.uncommitted, before.uncommitted);
  CHECK_READS(*rig.file, 0, 64, kNew);
  CHECK_READS(*rig.file, 64, 1024, kBase);
}

CASE(k07_eviction_keeps_promotions) {
  // Many plain extents push each other and the overlay's leaf out of a small cache.
  Rig rig(few_extents);
  Channel channel(*rig.target);
  dmu_msg overlay = dmu_msg_map(0, 0, 4096);
  dmu_map_read(&overlay, 0, 0);
  dmu_map_write(&overlay, 1, 0);
  dmu_map_overlay(&overlay, kGranule);
  dmu_map_push(&overlay, channel.gen);
  channel.send(overlay);
  channel.send(dmu_msg_bitmap(0, channel.gen, 0, 4096, nullptr, 0));
  rig.promote(channel, 0, 64, kNew);
  for (uint64_t i = 0; i < 200; i++) {
    Io io = rig.file->read(8192 + i * 8, 8);
    dmu_msg fault = channel.expect(DMU_MSG_FAULT);
    dmu_msg map = dmu_msg_map(fault.id, 8192 + i * 8, 8);  // none continues its neighbour
    dmu_map_read(&map, 0, 8 * (200 - i));
    channel.send(map);
    CHECK_EQ(io.result(), 8 * 512);
  }
  dmu_status status = rig.target->status();
  CHECK(status.evictions > 0);
  CHECK(status.extents <= status.max_extents);
  CHECK_EQ(status.uncommitted, 8U);
  Io read = rig.file->read(0, 8);
  while (!read.done())
    if (auto msg = channel.next(Ms(20)); msg && msg->type == DMU_MSG_FAULT) {
      CHECK(msg->flags & DMU_F_LEAF);  // the daemon has no durable bit, the kernel knows better
      channel.send(dmu_msg_bitmap(msg->id, 0, msg->sector, msg->len, nullptr, 0));
    }
  CHECK_EQ(read.result(), 8 * 512);
  CHECK_READS(*rig.file, 0, 64, kNew);
  CHECK_READS(*rig.file, 64, 64, kBase);
}

CASE(k07_volatile_bits_are_replayed) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  rig.push_overlay(*channel, kGranule, DMU_F_VOLATILE);
  rig.promote(*channel, 0, 16, kNew);
  rig.promote(*channel, 640, 8, kNew);
  channel->close();
  channel = std::make_unique<Channel>(*rig.target);
  std::set<uint64_t> granules;
  for (const dmu_msg& msg : channel->replayed) {
    CHECK(msg.flags & DMU_F_VOLATILE);
    CHECK(msg.flags & DMU_F_REPLAY);
    CHECK_EQ(msg.seq, 0U);
    for (uint64_t s = msg.sector; s < msg.sector + msg.len; s += kGranule) granules.insert(s);
  }
  CHECK(granules == (std::set<uint64_t>{0, 8, 640}));
  CHECK_READS(*rig.file, 0, 16, kNew);
}

CASE(k07_volatile_copy_first_is_replayed) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  dmu_msg map = dmu_msg_map(0, 64, 64);
  dmu_map_read(&map, 0, 64);
  dmu_map_write(&map, 1, 64);
  map.flags = DMU_F_COPY_FIRST | DMU_F_VOLATILE;
  dmu_map_push(&map, channel->gen);
  channel->send(map);
  rig.promote(*channel, 64, 64, kNew);
  channel->close();
  channel = std::make_unique<Channel>(*rig.target);
  CHECK_EQ(channel->replayed.size(), 1U);
  CHECK_EQ(channel->replayed[0].flags, DMU_F_VOLATILE | DMU_F_REPLAY);
  CHECK_EQ(channel->replayed[0].sector, 64U);
  CHECK_EQ(channel->replayed[0].len, 64U);
  CHECK_READS(*rig.file, 64, 64, kNew);
}

CASE(k07_volatile_bits_pushed_into_a_leaf_are_replayed) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  rig.push_overlay(*channel, kGranule, DMU_F_VOLATILE);
  uint8_t bits[kSize / kGranule / 8] = {0x08};
  channel->send(dmu_msg_bitmap(0, channel->gen, 0, kSize, bits, sizeof bits));
  channel->close();
  channel = std::make_unique<Channel>(*rig.target);
  CHECK_EQ(channel->replayed.size(), 1U);
  CHECK_EQ(channel->replayed[0].sector, 3U * kGranule);
  CHECK_EQ(channel->replayed[0].len, kGranule);
}

CASE(k07_uncommitted_maps_are_told) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  Io write = rig.file->write(64, 8, kNew);
  dmu_msg map = map_plain(channel->expect(DMU_MSG_FAULT).id, 64, 8, 1, 64);
  map.flags = DMU_F_UNCOMMITTED;
  channel->send(map);
  CHECK_EQ(write.result(), 8 * 512);
  dmu_msg told = channel->expect(DMU_MSG_PROMOTED);
  CHECK_EQ(told.sector, 64U);
  CHECK_EQ(told.len, 8U);
  CHECK_EQ(told.write_dest, 1U);
  Io sync = rig.file->sync();
  dmu_msg flush = channel->expect(DMU_MSG_FLUSH);
  CHECK_EQ(flush.seq, told.seq);
  channel->close();
  channel = std::make_unique<Channel>(*rig.target);
  CHECK_EQ(channel->replayed.size(), 1U);
  channel->send(dmu_msg_ack(channel->expect(DMU_MSG_FLUSH).id));
  CHECK_EQ(sync.result(), 0);
}

CASE(k07_uncommitted_copy_first_is_told_at_its_first_write) {
  Rig rig;
  Channel channel(*rig.target);
  dmu_msg map = dmu_msg_map(0, 0, 64);
  dmu_map_read(&map, 0, 0);
  dmu_map_write(&map, 1, 0);
  map.flags = DMU_F_COPY_FIRST | DMU_F_UNCOMMITTED;
  dmu_map_push(&map, channel.gen);
  channel.send(map);
  CHECK_READS(*rig.file, 0, 64, kBase);
  channel.expect_silence();
  CHECK(channel.promoted.empty());
  CHECK_EQ(rig.file->write(8, 8, kNew).result(), 8 * 512);
  dmu_msg told = channel.expect(DMU_MSG_PROMOTED);
  CHECK_EQ(told.sector, 0U);
  CHECK_EQ(told.len, 64U);
  CHECK_EQ(rig.target->status().uncommitted, 1U);
}

CASE_WITHIN(k07_daemons_killed_at_random_lose_nothing, 120'000) {
  Rig rig;
  CowStore store;
  std::atomic<bool> stop{false};
  std::vector<Io> writers;
  constexpr uint64_t kPart = kSize / 2;
  std::vector<std::vector<Seed>> truth(2, std::vector<Seed>(kPart / 8, kBase));
  for (uint64_t w = 0; w < 2; w++)
    writers.emplace_back([&, w] {
      std::minstd_rand random(static_cast<unsigned>(w) + 7);
      for (Seed n = 100; !stop; n++) {
        uint64_t block = random() % (kPart / 8);
        long r = rig.file->write_now(w * kPart + block * 8, 8, n);
        if (r == 8 * 512 && n % 16 == 0) r = rig.file->sync_now() == 0 ? r : -EIO;
        if (r != 8 * 512) return r;
        truth[w][block] = n;
      }
      return 0L;
    });
  std::minstd_rand random(42);
  for (int round = 0; round < 20; round++) {
    Cow cow(*rig.target, store);
    auto until = Clock::now() + Ms(random() % 250);
    while (Clock::now() < until) rig.target->status();
    cow.kill();
    cow.check();
  }
  Cow cow(*rig.target, store);
  stop = true;
  for (Io& io : writers) CHECK_EQ(io.result(), 0);
  for (uint64_t w = 0; w < 2; w++)
    for (uint64_t block = 0; block < kPart / 8; block++) CHECK_READS(*rig.file, w * kPart + block * 8, 8, truth[w][block]);
  CHECK_EQ(rig.file->sync().result(), 0);
  cow.kill();
  cow.check();

  // After a last commit the store alone knows it all: a fresh device over the same disks.
  rig.file.reset();
  rig.target = std::make_unique<Target>(kSize, std::vector<Dest>{{rig.base, true}, {rig.cow, false}});
  File fresh(rig.target->path());
  Cow last(*rig.target, store);
  for (uint64_t w = 0; w < 2; w++)
    for (uint64_t block = 0; block < kPart / 8; block++) CHECK_READS(fresh, w * kPart + block * 8, 8, truth[w][block]);
}
