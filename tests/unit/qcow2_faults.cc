// SPDX-License-Identifier: GPL-2.0-or-later
// For each thing that is done to an image: its first operation fails, its second, and so on
// until it gets through. Each failure must be told as what it is, and leave an image with
// which the next attempt succeeds.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/sim/qcow2_world.hh"

namespace cowd::qcow2 {
namespace {

using namespace cowd::sim;

const Shape kSmall{kMiB / 2, {{"cluster_size", "4K"}}, 0, 512};
const Shape kTiny{kMiB / 2, {{"cluster_size", "512"}}, 100 * kKiB + 512, 512};

const Shape kExtended{kMiB / 2, {{"cluster_size", "16K"}, {"extended_l2", "on"}}, 100 * kKiB, 512};
const Shape kData{kMiB / 2, {{"cluster_size", "4K"}, {"data_file", "data.raw"}}, 100 * kKiB, 512};
const Shape kLazy{
    kMiB / 2, {{"cluster_size", "512"}, {"lazy_refcounts", "on"}}, 100 * kKiB + 512, 512};

template <typename Attempt>
void for_each_failure(Attempt attempt) {
  for (const int error : {EIO, ENOSPC}) {
    uint64_t nth = 1;
    while (attempt(nth, error)) {
      ASSERT_LT(++nth, 2000u);
      if (testing::Test::HasFailure()) return;
    }
    EXPECT_GT(nth, 1u);
  }
}

TEST(Qcow2Faults, Create) {
  for_each_failure([](uint64_t nth, int error) {
    CreateRequest request;
    request.top = std::make_shared<SimDisk>("new", 0, 512, false);
    request.size = kMiB;
    auto& top = static_cast<SimDisk&>(*request.top);
    top.fail(nth, error);
    const int code = failure_of(create(request)).first;
    EXPECT_EQ(code, top.has_failed() ? error : 0);
    const bool met = top.has_failed();
    top.fail(0, 0);
    request.force = true;
    if (met) run(create(request));
    EXPECT_EQ(check_qcow2(request.top).errors, 0u);
    return met;
  });
}

TEST(Qcow2Faults, Open) {
  const auto good = make_qcow2(kMiB);
  for_each_failure([&](uint64_t nth, int error) {
    const auto top = good->copy();
    top->fail(nth, error);
    const int code = failure_of(open(qcow2_request(top))).first;
    EXPECT_EQ(code, top->has_failed() ? error : 0);
    return top->has_failed();
  });
}

// A step, until it gets through.
template <typename Step>
void insist(Step step, int error) {
  for (int tries = 0; tries < 3; tries++) {
    const auto [code, sentence] = failure_of(step());
    if (code == 0) return;
    EXPECT_EQ(code, error) << sentence;
  }
  ADD_FAILURE() << "a step never succeeds";
}

// Everything a session does, each step repeated until it gets through. What fails is the image,
// or its data file.
void sessions(const Shape& shape, unsigned ops, bool in_data = false) {
  for_each_failure([&](uint64_t nth, int error) {
    SCOPED_TRACE("operation " + std::to_string(nth));
    Qcow2World world(shape, 5);
    SimDisk& failing = in_data ? *world.data : *world.top;
    failing.fail(nth, error, ops);
    for (uint64_t i = 0; i < 4; i++) {
      const Range range{i * 260 + 3, 20}, unmapped{i * 64, 32};
      insist([&] { return world.guest->write(range); }, error);
      insist([&] { return i % 2 ? world.guest->flush() : world.kernel->timer(); }, error);
      if (i == 2) insist([&] { return world.guest->discard(unmapped); }, error);
      if (i == 3) insist([&] { return world.guest->zero(unmapped); }, error);
    }
    insist([&] { return world.guest->flush(); }, error);
    insist([&] { return world.guest->verify(); }, error);
    insist([&] { return world.kernel->detach(); }, error);
    const bool met = failing.has_failed();
    failing.fail(0, 0);
    const CheckResult result = check_qcow2(world.top);
    EXPECT_EQ(result.errors, 0u) << result.findings.at(0);
    EXPECT_EQ(result.leaks, 0u);
    run(world.kernel->attach());
    run(world.guest->verify());
    return met;
  });
}

TEST(Qcow2Faults, SessionsWithFailingReads) { sessions(kSmall, SimDisk::kRead); }
TEST(Qcow2Faults, SessionsWithFailingWrites) { sessions(kSmall, SimDisk::kWrite); }
TEST(Qcow2Faults, SessionsWithFailingFlushes) { sessions(kSmall, SimDisk::kFlush); }
TEST(Qcow2Faults, SmallClustersWithFailingWrites) { sessions(kTiny, SimDisk::kWrite); }
TEST(Qcow2Faults, SmallClustersWithFailingFlushes) { sessions(kTiny, SimDisk::kFlush); }

TEST(Qcow2Faults, SubclustersWithFailingReads) { sessions(kExtended, SimDisk::kRead); }
TEST(Qcow2Faults, SubclustersWithFailingWrites) { sessions(kExtended, SimDisk::kWrite); }
TEST(Qcow2Faults, SubclustersWithFailingFlushes) { sessions(kExtended, SimDisk::kFlush); }
TEST(Qcow2Faults, LazyRefcountsWithFailingReads) { sessions(kLazy, SimDisk::kRead); }
TEST(Qcow2Faults, LazyRefcountsWithFailingWrites) { sessions(kLazy, SimDisk::kWrite); }
TEST(Qcow2Faults, LazyRefcountsWithFailingFlushes) { sessions(kLazy, SimDisk::kFlush); }
TEST(Qcow2Faults, ADataFileAndFailingWrites) { sessions(kData, SimDisk::kWrite); }
TEST(Qcow2Faults, AFailingDataFile) { sessions(kData, SimDisk::kAny, true); }

// 2 MiB is what the first table can describe. The old one is free only when the header names the
// new one, and nothing is left of either that nobody names.
void grow_the_refcount_table(unsigned ops) {
  const Shape shape{3 * kMiB, {{"cluster_size", "512"}, {"refcount_bits", "64"}}, 0, 512};
  for_each_failure([&](uint64_t nth, int error) {
    SCOPED_TRACE("operation " + std::to_string(nth));
    Qcow2World world(shape, 1);
    run(world.guest->write({0, 3700}));
    run(world.kernel->timer());
    const uint64_t before = run(read_header(*world.top)).refcount_table_offset;
    world.top->fail(nth, error, ops);
    insist([&] { return world.guest->flush(); }, error);
    insist([&] { return world.guest->write({4000, 300}); }, error);
    insist([&] { return world.guest->flush(); }, error);
    const bool met = world.top->has_failed();
    world.top->fail(0, 0);
    EXPECT_NE(run(read_header(*world.top)).refcount_table_offset, before);
    run(world.kernel->detach());
    const CheckResult result = check_qcow2(world.top);
    EXPECT_EQ(result.errors + result.leaks, 0u) << result.findings.at(0);
    run(world.kernel->attach());
    run(world.guest->verify());
    return met;
  });
}

TEST(Qcow2Faults, AGrowingRefcountTableAndFailingWrites) {
  grow_the_refcount_table(SimDisk::kWrite);
}
TEST(Qcow2Faults, AGrowingRefcountTableAndFailingFlushes) {
  grow_the_refcount_table(SimDisk::kFlush);
}

TEST(Qcow2Faults, Repair) {
  Qcow2World world(kSmall, 1);
  run(world.guest->write({0, 300}));
  run(world.kernel->detach());
  const Header header = run(read_header(*world.top));
  const uint64_t block = header.cluster() * 2;
  for_each_failure([&](uint64_t nth, int error) {
    const auto top = world.top->copy();
    const Bytes wrong(20, std::byte(3));
    top->poke(block + 6, wrong);  // refcounts of the L1 table and others
    EXPECT_GT(check_qcow2(top).leaks, 0u);
    top->fail(nth, error);
    CheckRequest request;
    request.top = top;
    request.repair = true;
    const int code = failure_of(check(request)).first;
    EXPECT_EQ(code, top->has_failed() ? error : 0);
    const bool met = top->has_failed();
    top->fail(0, 0);
    if (met) check_qcow2(top, true);
    const CheckResult after = check_qcow2(top);
    EXPECT_EQ(after.errors + after.leaks, 0u);
    EXPECT_EQ(qemu_check(*top), 0);
    return met;
  });
}

}  // namespace
}  // namespace cowd::qcow2
