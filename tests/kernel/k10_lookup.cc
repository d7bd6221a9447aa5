// SPDX-License-Identifier: GPL-2.0-or-later
// K10: many threads look extents up while the daemon inserts, drops and replaces
// them. Two destinations hold the same data, so that any mapping that ever was
// right gives right data, and a freed or half-made one does not.
#include <cerrno>
#include <random>

#include "tests/kernel/target.hh"

using namespace dmutest;

namespace {

struct Mirror {
  Mirror() {
    for (Ram* ram : {&a, &b}) fill_disk(ram->path(), 0, kSize, kNew);
    target = std::make_unique<Target>(kSize, std::vector<Dest>{{&a, false}, {&b, false}},
                                      [](dmu_spec& spec) { spec.max_extents = 128; });
    file = std::make_unique<File>(target->path());
  }
  Ram a, b;
  std::unique_ptr<Target> target;
  std::unique_ptr<File> file;
};

}  // namespace

CASE(k10_readers_while_extents_come_and_go) {
  Mirror mirror;
  Channel channel(*mirror.target);
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> reads{0};
  std::vector<Io> readers;
  for (unsigned w = 0; w < 6; w++)
    readers.emplace_back([&, w] {
      std::minstd_rand random(w + 1);
      while (!stop) {
        uint64_t len = 8 * (1 + random() % 8), at = 8 * (random() % ((kSize - len) / 8));
        if (!mirror.file->difference(at, len, kNew).empty()) return -1L;
        reads++;
      }
      return 0L;
    });
  std::minstd_rand random(77);
  auto answer = [&](const dmu_msg& msg) {
    if (msg.type != DMU_MSG_FAULT) return;
    uint64_t start = msg.sector / 64 * 64, end = std::min<uint64_t>(kSize, start + 64 * (1 + random() % 8));
    channel.try_send(map_plain(msg.id, start, end - start, random() % 2, start));
  };
  auto end = Clock::now() + Ms(6'000);
  for (uint64_t id = 1; Clock::now() < end; id++) {
    uint64_t at = 8 * (random() % (kSize / 8 - 64));
    if (random() % 2) {
      CHECK_EQ(channel.try_send(dmu_msg_invalidate(id, at, 8 * (1 + random() % 64))), 0);
    } else {
      dmu_msg map = map_plain(0, at, 8 * (1 + random() % 64), random() % 2, at);
      dmu_map_push(&map, channel.gen);
      int r = channel.try_send(map);
      CHECK(r == 0 || r == -ESTALE);
    }
    while (auto msg = channel.next(Ms(0))) answer(*msg);
  }
  stop = true;
  auto drained = Clock::now() + kSoon;
  for (Io& io : readers)
    while (!io.done()) {
      CHECK(Clock::now() < drained);
      if (auto msg = channel.next(Ms(10))) answer(*msg);
    }
  for (Io& io : readers) CHECK_EQ(io.result(), 0);
  CHECK(reads > 500);
}

CASE(k10_lookups_ask_nobody) {
  // With everything mapped, readers on all CPUs go through with the daemon stopped.
  Mirror mirror;
  Channel channel(*mirror.target);
  for (uint64_t at = 0; at < kSize; at += 256) {
    dmu_msg map = map_plain(0, at, 256, at / 256 % 2, at);
    dmu_map_push(&map, channel.gen);
    channel.send(map);
  }
  std::vector<Io> readers;
  for (unsigned w = 0; w < 4; w++)
    readers.emplace_back([&, w] {
      std::minstd_rand random(w + 1);
      for (int i = 0; i < 500; i++)
        if (!mirror.file->difference(8 * (random() % (kSize / 8 - 8)), 64, kNew).empty()) return -1L;
      return 0L;
    });
  for (Io& io : readers) CHECK_EQ(io.result(), 0);
  CHECK_EQ(mirror.target->status().faults, 0U);
  channel.expect_silence(Ms(0));
}
