// SPDX-License-Identifier: GPL-2.0-or-later
// For each thing that is done to a store: its first operation fails, its second,
// and so on until it gets through. Each failure must be told as what it is, and
// leave a store with which the next attempt succeeds.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/sim/dscow_world.hh"

namespace cowd::dscow {
namespace {

using namespace cowd::sim;

constexpr uint64_t kDisk = 600 * kMiB + 512;  // with an edge

// Calls attempt(nth, error) until the nth operation is one more than there are.
// attempt() returns whether the failure was met.
template <typename Attempt>
void for_each_failure(Attempt attempt) {
  for (const int error : {EIO, ENOSPC}) {
    uint64_t nth = 1;
    while (attempt(nth, error)) {
      ASSERT_LT(++nth, 500u);
      if (testing::Test::HasFatalFailure()) return;
    }
    EXPECT_GT(nth, 1u);
  }
}

CheckResult check_of(std::shared_ptr<Disk> top, bool repair = false) {
  CheckRequest request;
  request.top = std::move(top);
  request.repair = repair;
  return run(check(request));
}

TEST(DscowFaults, Create) {
  for_each_failure([](uint64_t nth, int error) {
    const auto base = make_base(kMiB + 512);
    auto top = std::make_shared<SimDisk>("cow", plan(kDisk, 4096).needed());
    CreateRequest request;
    request.top = top;
    request.base = base;
    request.size = kDisk;
    top->fail(nth, error);
    const int code = failure_of(create(request)).first;
    EXPECT_EQ(code, top->has_failed() ? error : 0);
    const bool met = top->has_failed();
    top->fail(0, 0);
    request.force = true;
    if (met) run(create(request));
    EXPECT_EQ(check_of(top).errors, 0u);
    EXPECT_EQ(run(open(dscow_request(top, base)))->sectors(), kDisk / 512);
    return met;
  });
}

TEST(DscowFaults, Open) {
  for (const Durability durability : {Durability::flush, Durability::transient})
    for_each_failure([durability](uint64_t nth, int error) {
      const auto top = make_store(kDisk);
      World world(top, nullptr);
      top->fail(nth, error);
      const int code = failure_of(world.attach(durability)).first;
      EXPECT_EQ(code, top->has_failed() ? error : 0);
      const bool met = top->has_failed();
      top->fail(0, 0);
      // On this very boot: a failed attach must not count as one.
      if (met) run(world.attach(durability));
      run(world.detach());
      return met;
    });
}

TEST(DscowFaults, OpenWithTheBaseFailing) {
  for_each_failure([](uint64_t nth, int error) {
    const auto base = make_base(10 * kMiB);
    World world(make_store(10 * kMiB, base), base);
    base->fail(nth, error);
    const int code = failure_of(world.attach()).first;
    EXPECT_EQ(code, base->has_failed() ? error : 0);
    return base->has_failed();
  });
}

// Everything a session does, each step repeated until it gets through.
TEST(DscowFaults, Sessions) {
  for (const unsigned ops : {SimDisk::kRead, SimDisk::kWrite, SimDisk::kFlush})
    for_each_failure([ops](uint64_t nth, int error) {
      const auto top = make_store(kDisk);
      World world(top, nullptr);
      top->fail(nth, error, ops);
      const auto insist = [&](auto step) {
        for (int tries = 0; tries < 3; tries++) {
          const int code = failure_of(step()).first;
          if (code == 0) return;
          EXPECT_EQ(code, error);
        }
        FAIL() << "a step never succeeds";
      };
      for (int session = 0; session < 2; session++) {
        insist([&] { return world.attach(); });
        for (uint64_t i = 0; i < 4; i++) {
          const uint64_t granule = i * 30000 + static_cast<uint64_t>(session) * 7;
          insist([&] { return world.promote(granule, 2); });
          insist([&] { return i % 2 ? world.flush() : world.timer(); });
        }
        insist([&] { return world.promote(64000); });
        insist([&] { return world.detach(); });
      }
      const bool met = top->has_failed();
      top->fail(0, 0);
      EXPECT_EQ(check_of(top).errors, 0u);
      run(world.attach());
      EXPECT_EQ(run(leaf_granules(world.image())), world.told()) << "operation " << nth;
      return met;
    });
}

TEST(DscowFaults, Questions) {
  const auto top = make_store(kDisk);
  World world(top, nullptr);
  run(world.attach());
  for (uint64_t i = 0; i < 4; i++) run(world.promote(i * kPageGranules + i));
  run(world.detach());
  OpenRequest request = dscow_request(top);
  request.read_only = true;
  for_each_failure([&](uint64_t nth, int error) {
    const auto image = run(open(request));
    top->fail(nth, error);
    const int code = failure_of(promoted_granules(*image, 4096)).first;
    EXPECT_EQ(code, top->has_failed() ? error : 0);
    const bool met = top->has_failed();
    top->fail(0, 0);
    EXPECT_EQ(run(promoted_granules(*image, 4096)).size(), 5u);  // and the edge
    return met;
  });
  top->fail(1, EIO);
  EXPECT_EQ(failure_of(info(top)).first, EIO);
}

TEST(DscowFaults, Repair) {
  for_each_failure([](uint64_t nth, int error) {
    const auto top = make_store(kDisk);
    World world(top, nullptr);
    run(world.attach());
    run(world.promote(1));
    run(world.promote(4 * kPageGranules));
    run(world.detach());
    const Geometry& geometry = world.geometry();
    top->poke(geometry.top_offset, Bytes(1, std::byte(0xf1)));  // pages 5 to 7 are none
    top->poke(geometry.page_offset(4) + kBlock - 1,
              Bytes(1, std::byte(0xff)));       // granules beyond the end
    top->poke(100, Bytes(1, std::byte(0xff)));  // a header
    top->fail(nth, error);
    CheckRequest request;
    request.top = top;
    request.repair = true;
    const int code = failure_of(check(request)).first;
    EXPECT_EQ(code, top->has_failed() ? error : 0);
    const bool met = top->has_failed();
    top->fail(0, 0);
    if (met) check_of(top, true);
    EXPECT_TRUE(check_of(top).findings.empty()) << nth;
    run(world.attach());
    EXPECT_EQ(run(leaf_granules(world.image())), world.told());
    return met;
  });
}

}  // namespace
}  // namespace cowd::dscow
