// SPDX-License-Identifier: GPL-2.0-or-later
// The power is cut before every event of what attaches, promotions, commits and detaches
// do to a store, with what no flush covers lost, kept, or torn and mixed. What
// is found must open, check clean, have every promotion that was acknowledged,
// and none whose data is not there.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/sim/dscow_world.hh"

namespace cowd::dscow {
namespace {

using namespace cowd::sim;

constexpr uint64_t kDisk = 600 * kMiB;  // 5 pages, the last one short
constexpr int kMixtures = 4;            // at each event, besides all lost and all kept

using Workload = Task<> (*)(World&);

// The ways in which a workload can go by.
Task<> grow(World& world) {
  co_await world.attach();
  for (uint64_t i = 0; i < 5; i++) {
    co_await world.promote(i * kPageGranules + i);
    if (i % 2) co_await world.flush();
  }
  co_await world.timer();
  co_await world.promote(100, 3);
  co_await world.timer();
  co_await world.detach();
}

Task<> fill_a_page(World& world) {
  co_await world.attach();
  for (uint64_t i = 0; i < 6; i++) {
    co_await world.promote(4094 + i * 4096, 3);  // over the edge of a device block
    co_await world.flush();
  }
  co_await world.detach();
}

Task<> come_back(World& world) {
  for (uint64_t session = 0; session < 4; session++) {
    co_await world.attach();
    co_await world.promote(session * 20000, 2);
    co_await world.timer();
    co_await world.promote(session * 20000 + 5, 2);
    co_await world.detach();
  }
}

// The daemon is killed and restarted; the kernel tells again what was not committed.
Task<> restart(World& world) {
  co_await world.attach();
  co_await world.promote(1);
  co_await world.flush();
  for (uint64_t i = 0; i < 3; i++) {
    co_await world.promote(40000 + i);
    co_await world.attach(Durability::flush, true);
    co_await world.promote(40000 + i);
    co_await world.flush();
  }
  co_await world.detach();
}

// Promotions keep coming while commits are suspended in their I/O.
Task<> busy_kernel(World& world, uint64_t from) {
  for (uint64_t i = 0; i < 12; i++) co_await world.promote(from + i * 11003);
}

Task<> busy_daemon(World& world) {
  for (int i = 0; i < 3; i++) {
    co_await world.timer();
    co_await world.flush();
  }
}

class DscowCrash : public testing::Test {
 protected:
  // Opens what a crash left, as the same host does after its reboot.
  void verify(const World& world, std::shared_ptr<SimDisk> found,
              const std::set<uint64_t>& acknowledged) {
    CheckRequest request;
    request.top = found;
    const CheckResult result = run(check(request));
    ASSERT_EQ(result.errors, 0u) << result.findings.at(0);
    const std::unique_ptr<Image> image =
        run(open(dscow_request(found, nullptr, "after the crash")));
    const std::set<uint64_t> promoted = run(leaf_granules(*image));
    ASSERT_TRUE(std::ranges::includes(promoted, acknowledged))
        << "an acknowledged promotion is lost";
    for (const uint64_t granule : promoted)
      ASSERT_TRUE(world.holds_its_data(*found, granule))
          << "granule " << granule << " is promoted without its data";
  }

  void cut_everywhere(World& world, uint64_t seed) {
    const SimDisk& top = world.top();
    Random random(seed);
    uint64_t mark = 0;
    for (size_t at = 0; at <= top.log().size(); at++) {
      if (at > 0 && top.log()[at - 1].kind == Event::Kind::mark) mark = top.log()[at - 1].id;
      for (int i = 0; i < kMixtures + 2; i++) {
        const Survives survives = i == 0   ? Survives::nothing
                                  : i == 1 ? Survives::everything
                                           : Survives::anything;
        SCOPED_TRACE("seed " + std::to_string(seed) + ", event " + std::to_string(at) +
                     ", mixture " + std::to_string(i));
        ASSERT_NO_FATAL_FAILURE(
            verify(world, top.crash(at, survives, random), world.acknowledged_at(mark)));
      }
    }
  }

  void cut(Workload workload, uint32_t block_size = 512) {
    World world(make_store(kDisk, nullptr, "4K", block_size), nullptr);
    world.top().record();
    run(workload(world));
    cut_everywhere(world, 1);
  }
};

TEST_F(DscowCrash, WhilePagesAreAdded) { cut(grow); }
TEST_F(DscowCrash, WhilePagesAreAddedOn4KiBDeviceBlocks) { cut(grow, 4096); }
TEST_F(DscowCrash, WhileAPageFills) { cut(fill_a_page); }
TEST_F(DscowCrash, InOneOfManySessions) { cut(come_back); }
TEST_F(DscowCrash, AfterADaemonRestarted) { cut(restart); }

TEST_F(DscowCrash, WhilePromotionsRaceWithCommits) {
  const auto empty = make_store(kDisk);
  for (uint64_t seed = 1; seed <= 5; seed++) {
    World world(empty->copy(), nullptr);
    world.top().delay(seed, 8);
    world.top().record();
    run(world.attach());
    std::vector<Task<>> tasks;
    tasks.push_back(busy_kernel(world, 1));
    tasks.push_back(busy_kernel(world, 5000));
    tasks.push_back(busy_daemon(world));
    run_all(std::move(tasks));
    run(world.detach());
    ASSERT_FALSE(world.top().buffer_changed());
    ASSERT_NO_FATAL_FAILURE(cut_everywhere(world, seed));
  }
}

// Commits that fail on their way, then succeed, then the power fails.
TEST_F(DscowCrash, AfterFailedCommits) {
  const auto empty = make_store(kDisk);
  for (uint64_t nth = 1; nth <= 14; nth++) {
    World world(empty->copy(), nullptr);
    world.top().record();
    run(world.attach());
    run(world.promote(7));
    run(world.flush());
    world.top().fail(nth, EIO, SimDisk::kWrite | SimDisk::kFlush);
    for (uint64_t i = 0; i < 3; i++) {
      const uint64_t granule = i * kPageGranules + 100 + i;
      if (failure_of(world.promote(granule)).first != 0) run(world.promote(granule));
      while (failure_of(i % 2 ? world.flush() : world.timer()).first != 0)
        run(world.rewrite_uncommitted());
    }
    ASSERT_TRUE(world.top().has_failed()) << nth;
    world.top().fail(0, 0);
    run(world.detach());
    ASSERT_NO_FATAL_FAILURE(cut_everywhere(world, nth));
  }
}

Task<> anything(World& world, Random& random) {
  co_await world.attach();
  for (int i = 0; i < 8; i++) {
    co_await world.promote(random() % (kDisk / 4096 - 4), 1 + random() % 4);
    if (random() % 3 == 0) co_await world.flush();
    if (random() % 3 == 0) co_await world.timer();
  }
  if (random() % 2) co_await world.detach();
}

// Crash, go on with what is there, crash again: the torn remains of one crash
// must not be what breaks the next.
TEST_F(DscowCrash, AgainAndAgain) {
  for (uint64_t seed = 1; seed <= 100; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    std::shared_ptr<SimDisk> disk = make_store(kDisk);
    std::set<uint64_t> safe;
    for (int boot = 0; boot < 6; boot++) {
      World world(disk, nullptr);
      world.boot = "boot-" + std::to_string(boot);
      disk->record();
      run(anything(world, random));
      const size_t at = random() % (disk->log().size() + 1);
      uint64_t mark = 0;
      for (size_t i = 0; i < at; i++)
        if (disk->log()[i].kind == Event::Kind::mark) mark = disk->log()[i].id;
      safe.insert(world.acknowledged_at(mark).begin(), world.acknowledged_at(mark).end());
      disk = disk->crash(at, Survives::anything, random);
      ASSERT_NO_FATAL_FAILURE(verify(world, disk->copy(), safe));
    }
  }
}

// create over an older store: what is found is the old one, none, or the new one.
TEST_F(DscowCrash, WhileAStoreIsCreatedOverAnother) {
  const auto old = make_store(kDisk);
  World world(old, nullptr);
  run(world.attach());
  run(world.promote(9));
  run(world.detach());
  old->record();
  CreateRequest request;
  request.top = old;
  request.size = kDisk / 2;
  request.force = true;
  run(create(request));
  Random random(1);
  int kinds[3] = {};
  for (size_t at = 0; at <= old->log().size(); at++)
    for (int i = 0; i < 40; i++) {
      const auto found = old->crash(at, i == 0 ? Survives::everything : Survives::anything, random);
      std::unique_ptr<Image> image;
      try {
        image = run(open(dscow_request(found)));
      } catch (const Error&) {
        kinds[0]++;
        continue;
      }
      const bool is_new = image->sectors() == kDisk / 1024;
      kinds[is_new ? 2 : 1]++;
      const std::set<uint64_t> promoted = run(leaf_granules(*image));
      ASSERT_EQ(promoted, is_new ? std::set<uint64_t>{} : std::set<uint64_t>{9}) << at;
    }
  for (const int kind : kinds) EXPECT_GT(kind, 0);
}

}  // namespace
}  // namespace cowd::dscow
