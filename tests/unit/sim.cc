// SPDX-License-Identifier: GPL-2.0-or-later
// The simulated disk must be as nasty as it says, and repeatable.
#include <gtest/gtest.h>

#include <set>

#include "tests/sim/run.hh"
#include "tests/sim/sim_disk.hh"

namespace cowd::sim {
namespace {

constexpr uint64_t kMiB = 1 << 20;

Bytes filled(size_t length, int value) { return Bytes(length, std::byte(value)); }

Task<> write(SimDisk& disk, uint64_t offset, Bytes bytes) { co_await disk.write_at(offset, bytes); }

TEST(Sim, ReadsBackWhatWasWritten) {
  SimDisk disk("disk", kMiB);
  run(write(disk, 4096 - 512, filled(1024, 7)));
  EXPECT_EQ(disk.peek(4096 - 512, 1024), filled(1024, 7));
  EXPECT_EQ(disk.counts().writes, 1u);
}

TEST(Sim, WhatWasNeverWrittenIsGarbageAndStaysTheSame) {
  SimDisk disk("disk", kMiB);
  EXPECT_NE(disk.peek(0, 4096), filled(4096, 0));
  EXPECT_EQ(disk.peek(8192, 4096), disk.peek(8192, 4096));
}

TEST(Sim, RefusesPartsOfBlocksAndBeyondItsEnd) {
  SimDisk disk("disk", kMiB, 4096);
  EXPECT_EQ(failure_of(write(disk, 512, filled(4096, 1))).first, EINVAL);
  EXPECT_EQ(failure_of(write(disk, 0, filled(512, 1))).first, EINVAL);
  EXPECT_EQ(failure_of(write(disk, kMiB, filled(4096, 1))).first, EINVAL);
}

TEST(Sim, OnlyAFlushMakesAWriteCertain) {
  SimDisk disk("disk", kMiB, 512, false);
  disk.record();
  run(write(disk, 0, filled(512, 1)));
  run(disk.flush());
  run(write(disk, 512, filled(512, 2)));
  Random random(1);
  const auto least = disk.crash(disk.log().size(), Survives::nothing, random);
  EXPECT_EQ(least->peek(0, 512), filled(512, 1));
  EXPECT_EQ(least->peek(512, 512), filled(512, 0));
  const auto most = disk.crash(disk.log().size(), Survives::everything, random);
  EXPECT_EQ(most->peek(512, 512), filled(512, 2));
  const auto early = disk.crash(2, Survives::nothing, random);
  EXPECT_EQ(early->peek(0, 512), filled(512, 0));
}

TEST(Sim, AWriteThatEndsAfterTheFlushBeganIsNotCertain) {
  SimDisk disk("disk", kMiB, 512, false);
  disk.delay(3, 20);
  disk.record();
  bool seen = false;
  for (int i = 0; i < 50 && !seen; i++) {
    std::vector<Task<>> tasks;
    tasks.push_back(write(disk, 0, filled(512, i + 1)));
    tasks.push_back(disk.flush());
    run_all(std::move(tasks));
    const auto& log = disk.log();
    // Both began, and then the write ended before the flush did.
    seen = log[log.size() - 2].kind == Event::Kind::write_ends;
    if (!seen) continue;
    Random random(1);
    EXPECT_NE(disk.crash(log.size(), Survives::nothing, random)->peek(0, 512), filled(512, i + 1));
  }
  EXPECT_TRUE(seen);
}

TEST(Sim, TearsWritesInBlocks) {
  SimDisk disk("disk", kMiB, 512, false);
  disk.record();
  run(write(disk, 0, filled(4096, 1)));
  std::set<Bytes> outcomes;
  Random random(5);
  for (int i = 0; i < 100; i++) {
    const Bytes found = disk.crash(disk.log().size(), Survives::anything, random)->peek(0, 4096);
    for (size_t at = 0; at < 4096; at += 512)
      EXPECT_EQ(Bytes(found.begin() + at, found.begin() + at + 512),
                filled(512, std::to_integer<int>(found[at])));
    outcomes.insert(found);
  }
  EXPECT_GT(outcomes.size(), 10u);
}

TEST(Sim, AFailedFlushMayLoseWhatALaterOneSeemsToSave) {
  SimDisk disk("disk", kMiB, 512, false);
  disk.record();
  run(write(disk, 0, filled(512, 1)));
  disk.fail(1, EIO, SimDisk::kFlush);
  EXPECT_EQ(failure_of(disk.flush()).first, EIO);
  run(disk.flush());
  Random random(1);
  EXPECT_EQ(disk.crash(disk.log().size(), Survives::nothing, random)->peek(0, 512), filled(512, 0));
  EXPECT_EQ(disk.peek(0, 512), filled(512, 1));
}

// Begins what a program is killed in.
void begin_and_kill(Task<> task) {
  boost::asio::io_context loop(1);
  boost::asio::co_spawn(loop, std::move(task), [](std::exception_ptr) {});
  loop.poll_one();
}

TEST(Sim, WhatAKilledProgramWasWritingIsWritten) {
  SimDisk disk("disk", kMiB, 512, false);
  disk.record();
  disk.delay(1, 1000);
  begin_and_kill(write(disk, 0, filled(1024, 1)));
  EXPECT_EQ(disk.peek(0, 1024), filled(1024, 1));
  disk.delay(1, 0);
  run(disk.flush());
  Random random(1);
  EXPECT_EQ(disk.crash(disk.log().size(), Survives::nothing, random)->peek(0, 1024),
            filled(1024, 1));
}

TEST(Sim, AFlushThatNobodyWaitsForKeepsTheNextFromNothing) {
  SimDisk disk("disk", kMiB, 512, false);
  disk.record();
  run(write(disk, 0, filled(512, 1)));
  disk.delay(1, 1000);
  begin_and_kill(disk.flush());
  EXPECT_EQ(disk.log().back().kind, Event::Kind::flush_begins);
  disk.delay(1, 0);
  run(disk.flush());
  Random random(1);
  EXPECT_EQ(disk.crash(disk.log().size(), Survives::nothing, random)->peek(0, 512), filled(512, 1));
}

TEST(Sim, AFullDiskTakesNothing) {
  SimDisk disk("disk", kMiB, 512, false);
  disk.record();
  disk.set_full(true);
  EXPECT_EQ(failure_of(write(disk, 0, filled(512, 1))).first, ENOSPC);
  EXPECT_EQ(disk.peek(0, 512), filled(512, 0));
  Random random(1);
  EXPECT_EQ(disk.crash(disk.log().size(), Survives::everything, random)->peek(0, 512),
            filled(512, 0));
  disk.set_full(false);
  run(write(disk, 0, filled(512, 1)));
  EXPECT_EQ(disk.peek(0, 512), filled(512, 1));
}

TEST(Sim, TheNthOperationFails) {
  SimDisk disk("disk", kMiB);
  disk.fail(2, ENOSPC, SimDisk::kWrite);
  run(write(disk, 0, filled(512, 1)));
  run(disk.flush());
  EXPECT_FALSE(disk.has_failed());
  EXPECT_EQ(failure_of(write(disk, 0, filled(512, 1))).first, ENOSPC);
  EXPECT_TRUE(disk.has_failed());
  run(write(disk, 0, filled(512, 1)));
}

TEST(Sim, TheSameSeedGivesTheSameOrder) {
  std::set<std::vector<uint64_t>> orders;
  const auto order_of = [](uint64_t seed) {
    SimDisk disk("disk", kMiB);
    disk.delay(seed, 10);
    disk.record();
    std::vector<Task<>> tasks;
    for (int i = 0; i < 6; i++) tasks.push_back(write(disk, 512 * i, filled(512, i)));
    run_all(std::move(tasks));
    std::vector<uint64_t> order;
    for (const Event& event : disk.log())
      if (event.kind == Event::Kind::write_ends) order.push_back(event.id);
    return order;
  };
  for (uint64_t seed = 0; seed < 20; seed++) {
    EXPECT_EQ(order_of(seed), order_of(seed));
    orders.insert(order_of(seed));
  }
  EXPECT_GT(orders.size(), 10u);
}

TEST(Sim, NoticesABufferThatChangesUnderIo) {
  SimDisk disk("disk", kMiB);
  disk.delay(2, 10);
  Bytes bytes = filled(512, 1);
  const auto meddle = [](SimDisk& on, Bytes& buffer) -> Task<> {
    co_await on.flush();
    buffer[0] = std::byte{9};
  };
  for (int i = 0; i < 20; i++) {
    bytes[0] = std::byte{1};
    std::vector<Task<>> tasks;
    tasks.push_back(disk.write_at(0, bytes));
    tasks.push_back(meddle(disk, bytes));
    run_all(std::move(tasks));
  }
  EXPECT_TRUE(disk.buffer_changed());
}

TEST(Sim, IsSparse) {
  SimDisk disk("disk", 64ULL << 40);
  run(write(disk, disk.size() - 512, filled(512, 3)));
  EXPECT_EQ(disk.peek(disk.size() - 512, 512), filled(512, 3));
}

}  // namespace
}  // namespace cowd::sim
