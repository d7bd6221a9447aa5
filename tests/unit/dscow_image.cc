// SPDX-License-Identifier: GPL-2.0-or-later
// What an open store answers to the kernel, to map and to check.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "formats/dscow/bits.hh"
#include "tests/sim/dscow_world.hh"

namespace cowd::dscow {
namespace {

using namespace cowd::sim;

std::vector<Extent> extents(const std::vector<Answer>& answers) {
  std::vector<Extent> all;
  for (const Answer& answer : answers) all.push_back(std::get<Extent>(answer));
  return all;
}

cowd::Bitmap leaf(Image& image, Range range) {
  return std::get<cowd::Bitmap>(run(image.resolve(range, Access::leaf)).at(0));
}

Range granules(uint64_t first, uint64_t count = 1, uint64_t sectors = 8) {
  return {first * sectors, count * sectors};
}

CheckResult check_of(std::shared_ptr<Disk> top, bool repair = false,
                     std::shared_ptr<Disk> base = nullptr) {
  CheckRequest request;
  request.top = std::move(top);
  request.base = std::move(base);
  request.repair = repair;
  return run(check(request));
}

TEST(DscowImage, IsOneOverlayOverABaseOfItsSize) {
  const auto base = make_base(kGiB);
  World world(make_store(kGiB, base), base);
  run(world.attach());
  EXPECT_EQ(world.image().sectors(), kGiB / 512);
  const auto all = extents(world.image().initial());
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].range, (Range{0, kGiB / 512}));
  EXPECT_EQ(all[0].read, Side::at(1, 0));
  EXPECT_EQ(all[0].write, Side::at(0, world.geometry().data_offset / 512));
  EXPECT_EQ(all[0].granule, 8u);
  EXPECT_FALSE(all[0].sync || all[0].is_volatile || all[0].copy_first);
  const std::vector<Destination> destinations = world.image().destinations();
  ASSERT_EQ(destinations.size(), 2u);
  EXPECT_TRUE(destinations[0].writable);
  EXPECT_FALSE(destinations[1].writable);
  EXPECT_EQ(extents(run(world.image().resolve(granules(77), Access::write))).at(0).range,
            all[0].range);
  EXPECT_TRUE(run(world.image().discard(granules(3))).empty());
}

TEST(DscowImage, MarksItsExtentsWithTheDurability) {
  World always(make_store(kMiB), nullptr);
  run(always.attach(Durability::always));
  EXPECT_TRUE(extents(always.image().initial()).at(0).sync);
  EXPECT_EQ(extents(always.image().initial()).at(0).read, Side::zeroes());
  World transient(make_store(kMiB), nullptr);
  run(transient.attach(Durability::transient));
  EXPECT_TRUE(extents(transient.image().initial()).at(0).is_volatile);
}

// Base of 2 granules and a bit, disk of 5 granules and a bit.
TEST(DscowImage, SplitsWhereTheBaseAndTheDiskEndWithinAGranule) {
  const auto base = make_base(2 * 65536 + 512);
  const auto top = make_store(5 * 65536 + 1024, base, "64K");
  World world(top, base);
  run(world.attach());
  const auto all = extents(world.image().initial());
  ASSERT_EQ(all.size(), 4u);
  const uint64_t data = world.geometry().data_offset / 512;
  EXPECT_EQ(all[0].range, (Range{0, 256}));
  EXPECT_EQ(all[0].read, Side::at(1, 0));
  EXPECT_EQ(all[1].range, (Range{256, 128}));
  EXPECT_EQ(all[1].granule, 0u);
  EXPECT_EQ(all[1].read, Side::at(0, data + 256));
  EXPECT_EQ(all[1].write, all[1].read);
  EXPECT_EQ(all[2].range, (Range{384, 256}));
  EXPECT_EQ(all[2].read, Side::zeroes());
  EXPECT_EQ(all[2].granule, 128u);
  EXPECT_EQ(all[3].range, (Range{640, 2}));
  EXPECT_EQ(all[3].write, Side::at(0, data + 640));
  // The first edge holds a sector of the base and zeroes, the other zeroes.
  Bytes edge = base->peek(2 * 65536, 512);
  edge.resize(65536);
  EXPECT_EQ(top->peek(world.geometry().granule_offset(2), 65536), edge);
  EXPECT_EQ(top->peek(world.geometry().granule_offset(5), 65536), Bytes(65536));
  EXPECT_EQ(run(promoted_granules(world.image(), 65536)), (std::set<uint64_t>{2, 5}));
}

TEST(DscowImage, ABaseThatEndsWithAGranuleNeedsNoEdge) {
  const auto base = make_base(kMiB);
  World world(make_store(2 * kMiB, base), base);
  run(world.attach());
  const auto all = extents(world.image().initial());
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[1].range, (Range{kMiB / 512, kMiB / 512}));
  EXPECT_EQ(all[1].read, Side::zeroes());
}

TEST(DscowImage, ALargerBaseIsCutToTheDisk) {
  const auto base = make_base(2 * kMiB);
  World world(make_store(kMiB + 512, base), base);
  run(world.attach());
  const auto all = extents(world.image().initial());
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[1].range, (Range{kMiB / 512, 1}));
  EXPECT_EQ(world.top().peek(world.geometry().granule_offset(256), 4096), base->peek(kMiB, 4096));
}

TEST(DscowImage, AnswersLeavesWithEverythingToldSoFar) {
  World world(make_store(kGiB), nullptr);
  run(world.attach());
  Image& image = world.image();
  const Range first = granules(0, kPageGranules), second = granules(kPageGranules, kPageGranules);
  EXPECT_TRUE(leaf(image, first).bits.empty());
  EXPECT_FALSE(leaf(image, first).all);
  run(world.promote(5));
  Buffer expected(kPageGranules / 8);
  set_bits(expected, 5, 1);
  EXPECT_TRUE(std::ranges::equal(leaf(image, first).bits, expected));
  run(world.flush());
  EXPECT_TRUE(std::ranges::equal(leaf(image, first).bits, expected));
  EXPECT_TRUE(leaf(image, second).bits.empty());
  run(world.promote(kPageGranules, kPageGranules));
  EXPECT_TRUE(leaf(image, second).all);
  EXPECT_EQ(leaf(image, second).range, second);
}

// The second overlay's leaves begin anywhere in a page.
TEST(DscowImage, AnswersLeavesThatLieAcrossPages) {
  const auto base = make_base(40 * kMiB);  // 10240 granules
  World world(make_store(400 * kMiB, base), base);
  run(world.attach());
  for (const uint64_t granule : {10240u, 32767u, 32768u, 43007u, 43008u, 102399u})
    run(world.promote(granule));
  const std::set<uint64_t> expected = world.told();
  EXPECT_EQ(run(leaf_granules(world.image())), expected);
  run(world.flush());
  EXPECT_EQ(run(leaf_granules(world.image())), expected);
  EXPECT_EQ(run(promoted_granules(world.image(), 4096)), expected);
}

TEST(DscowImage, RefusesLeavesThatAreNone) {
  World world(make_store(kGiB + 512), nullptr);
  run(world.attach());
  const auto code_of = [&](Range range) {
    return failure_of(world.image().resolve(range, Access::leaf)).first;
  };
  EXPECT_EQ(code_of({1, 8}), EINVAL);
  EXPECT_EQ(code_of({0, 9}), EINVAL);
  EXPECT_EQ(code_of(granules(0, kPageGranules + 1)), EINVAL);
  EXPECT_EQ(code_of({kGiB / 512, 1}), EINVAL);
  EXPECT_EQ(code_of({kGiB / 512, 8}), ERANGE);
  EXPECT_EQ(code_of({0, 0}), ERANGE);
}

TEST(DscowImage, MapsInRuns) {
  const auto base = make_base(kGiB);
  World world(make_store(2 * kGiB, base), base);
  run(world.attach());
  run(world.promote(1));
  run(world.promote(kPageGranules - 2, 4));
  run(world.flush());
  run(world.promote(3));
  const std::vector<MapEntry> map = run(world.image().map({4, 2 * kGiB / 512 - 4}));
  const uint64_t data = world.geometry().data_offset;
  struct Expected {
    uint64_t first, end;  // sectors
    int depth;
    uint64_t offset;
  };
  const std::vector<Expected> expected = {
      {4, 8, 1, 4 * 512},
      {8, 16, 0, data + 4096},
      {16, 24, 1, 8192},
      {24, 32, 0, data + 3 * 4096},
      {32, (kPageGranules - 2) * 8, 1, 4 * 4096},
      {(kPageGranules - 2) * 8, (kPageGranules + 2) * 8, 0, data + (kPageGranules - 2) * 4096ULL},
      {(kPageGranules + 2) * 8, kGiB / 512, 1, (kPageGranules + 2) * 4096ULL},
      {kGiB / 512, 2 * kGiB / 512, -1, 0}};
  ASSERT_EQ(map.size(), expected.size());
  for (size_t i = 0; i < map.size(); i++) {
    EXPECT_EQ(map[i].range, (Range{expected[i].first, expected[i].end - expected[i].first})) << i;
    const bool zero = expected[i].depth < 0;
    EXPECT_EQ(map[i].zero, zero) << i;
    EXPECT_EQ(map[i].present, !zero) << i;
    EXPECT_EQ(map[i].has_offset, !zero) << i;
    if (zero) continue;
    EXPECT_EQ(map[i].depth, expected[i].depth) << i;
    EXPECT_EQ(map[i].offset, expected[i].offset) << i;
    EXPECT_EQ(map[i].disk, expected[i].depth == 0 ? "/dev/vg/cow" : "/dev/vg/base") << i;
  }
}

TEST(DscowImage, MapsAnEmptyDiskOf64TebibytesWithoutReading) {
  World world(make_store(64 * kTiB), nullptr);
  run(world.attach());
  world.top().reset_counts();
  EXPECT_EQ(run(world.image().map({0, world.image().sectors()})).size(), 1u);
  EXPECT_EQ(world.top().counts().reads, 0u);
}

TEST(DscowImage, ReadOnlyAnswersPlainExtents) {
  const auto base = make_base(kGiB);
  const auto top = make_store(kGiB, base);
  World world(top, base);
  run(world.attach());
  for (const uint64_t granule : {2u, 3u, 7u, 70000u}) run(world.promote(granule));
  run(world.detach());
  OpenRequest request = dscow_request(top, base);
  request.read_only = true;
  top->reset_counts();
  const auto image = run(open(request));
  EXPECT_TRUE(image->initial().empty());
  const auto found = extents(run(image->resolve({12, 8}, Access::read)));
  ASSERT_EQ(found.size(), 5u);
  EXPECT_EQ(found[0].range, granules(1));
  EXPECT_EQ(found[0].read, Side::at(1, 8));
  EXPECT_EQ(found[1].range, granules(2, 2));
  EXPECT_EQ(found[1].read, Side::at(0, (world.geometry().data_offset + 8192) / 512));
  EXPECT_EQ(found[4].range.end(), kPageGranules * 8u);
  for (const Extent& extent : found) EXPECT_EQ(extent.write, Side::fault());
  EXPECT_EQ(failure_of(image->resolve({0, 8}, Access::write)).first, EROFS);
  run(image->close());
  EXPECT_EQ(top->counts().writes, 0u);
}

TEST(DscowImage, ReadOnlyAnswersAreBounded) {
  const auto top = make_store(kGiB);
  World world(top, nullptr);
  run(world.attach());
  for (uint64_t granule = 0; granule < 400; granule += 2) run(world.promote(granule));
  run(world.detach());
  OpenRequest request = dscow_request(top);
  request.read_only = true;
  const auto image = run(open(request));
  EXPECT_EQ(run(image->resolve({0, 8}, Access::read)).size(), 64u);
}

TEST(DscowImage, CommitsNothingAfterItWasMisled) {
  World world(make_store(kGiB + 512), nullptr);
  const auto code_after = [&](Promotion wrong) {
    run(world.attach(Durability::flush, true));
    run(world.promote(1));
    wrong.seq = 2;
    world.image().promoted(wrong);
    return failure_of(world.image().commit(2, true)).first;
  };
  const uint64_t data = world.geometry().data_offset / 512;
  EXPECT_EQ(code_after({{8, 8}, 0, data + 16, 0, false}), EIO);
  EXPECT_EQ(code_after({{8, 8}, 1, data + 8, 0, false}), EIO);
  EXPECT_EQ(code_after({{9, 8}, 0, data + 9, 0, false}), EIO);
  EXPECT_EQ(code_after({{8, 4}, 0, data + 8, 0, false}), EIO);
  EXPECT_EQ(code_after({{kGiB / 512 + 8, 8}, 0, data + kGiB / 512 + 8, 0, false}), EIO);
  EXPECT_EQ(code_after({{8, 8}, 0, data + 8, 0, false}), 0);
}

TEST(DscowImage, CloseCommitsWhatIsLeft) {
  const auto top = make_store(kGiB);
  World world(top, nullptr);
  run(world.attach());
  run(world.promote(17, 3));
  run(world.detach());
  EXPECT_EQ(run(info(top))["clean"], true);
  run(world.attach());
  EXPECT_EQ(run(leaf_granules(world.image())), (std::set<uint64_t>{17, 18, 19}));
}

// A guest is saved: its transient disk must be there when it is restored.
TEST(DscowImage, PreserveMakesATransientStorePersistent) {
  const auto top = make_store(kGiB);
  World world(top, nullptr);
  run(world.attach(Durability::transient));
  run(world.promote(17, 3));
  run(world.promote(200'000));
  run(world.image().preserve());
  EXPECT_EQ(run(leaf_granules(world.image())), (std::set<uint64_t>{17, 18, 19, 200'000}));
  run(world.promote(5));  // its user went on after all
  run(world.detach());
  run(world.attach(Durability::flush));
  EXPECT_EQ(run(leaf_granules(world.image())), (std::set<uint64_t>{5, 17, 18, 19, 200'000}));
  for (uint64_t granule : {5, 17, 18, 19, 200'000})
    EXPECT_TRUE(world.holds_its_data(world.top(), granule));
}

TEST(DscowImage, APreserveThatFailsCanBeRepeated) {
  const auto top = make_store(kGiB);
  World world(top, nullptr);
  run(world.attach(Durability::transient));
  run(world.promote(17, 3));
  top->fail(1, EIO);
  EXPECT_EQ(failure_of(world.image().preserve()).first, EIO);
  run(world.image().preserve());
  run(world.detach());
  run(world.attach(Durability::flush));
  EXPECT_EQ(run(leaf_granules(world.image())), (std::set<uint64_t>{17, 18, 19}));
}

// cowd is killed after that, and its note says transient.
TEST(DscowImage, APreservedStoreIsTakenUpAsWhatItIs) {
  const auto top = make_store(kGiB);
  World world(top, nullptr);
  run(world.attach(Durability::transient));
  run(world.promote(17, 3));
  run(world.image().preserve());
  EXPECT_EQ(failure_of(world.attach(Durability::transient)).first, EINVAL);
  run(world.attach(Durability::transient, true));
  EXPECT_EQ(run(leaf_granules(world.image())), (std::set<uint64_t>{17, 18, 19}));
  run(world.promote(5));
  run(world.detach());
  // Closed, but its note was not removed yet.
  run(world.attach(Durability::transient, true));
  run(world.detach());
  run(world.attach(Durability::flush));
  EXPECT_EQ(run(leaf_granules(world.image())), (std::set<uint64_t>{5, 17, 18, 19}));
}

TEST(DscowImage, TellsItsNumbers) {
  World world(make_store(kGiB), nullptr);
  run(world.attach());
  run(world.promote(1, 5));
  EXPECT_EQ(world.image().stats()["uncommitted_granules"], 5);
  run(world.flush());
  const nlohmann::json stats = world.image().stats();
  EXPECT_EQ(stats["uncommitted_granules"], 0);
  EXPECT_EQ(stats["commits"], 1);
  EXPECT_EQ(stats["pages"], 1);
  EXPECT_EQ(stats["mode"], "flush");
}

// --- check -------------------------------------------------------------------

class DscowCheck : public testing::Test {
 protected:
  DscowCheck() {
    run(world_.attach());
    run(world_.promote(5, 3));
    run(world_.promote(40000));
    run(world_.detach());
  }
  void set_bit(uint64_t offset, uint64_t bit) {
    Bytes byte = top_->peek(offset + bit / 8, 1);
    byte[0] |= std::byte(1 << bit % 8);
    top_->poke(offset + bit / 8, byte);
  }
  const std::shared_ptr<SimDisk> base_ = make_base(200 * kMiB + 512);
  const std::shared_ptr<SimDisk> top_ = make_store(200 * kMiB + 512, base_);
  World world_{top_, base_};
  const Geometry& geometry_ = world_.geometry();
};

TEST_F(DscowCheck, OfAGoodStoreFindsNothing) {
  const CheckResult result = check_of(top_, false, base_);
  EXPECT_EQ(result.errors + result.leaks, 0u);
  EXPECT_TRUE(result.findings.empty());
  EXPECT_EQ(result.total_granules, 200 * 256 + 1u);
  EXPECT_EQ(result.allocated_granules, 4 + 1u);  // and the edge
}

TEST_F(DscowCheck, RepairsBitsThatStandForNothing) {
  set_bit(geometry_.top_offset, geometry_.pages());
  set_bit(geometry_.top_offset, 9999);
  set_bit(geometry_.page_offset(1), geometry_.granules_in(1));
  set_bit(geometry_.page_offset(1), geometry_.granules_in(1) - 1);  // the edge
  EXPECT_EQ(check_of(top_).errors, 4u);
  EXPECT_EQ(check_of(top_).findings.size(), 2u);
  const CheckResult repaired = check_of(top_, true);
  EXPECT_EQ(repaired.errors, 0u);
  EXPECT_EQ(repaired.errors_fixed, 4u);
  EXPECT_TRUE(check_of(top_).findings.empty());
  run(world_.attach());
  EXPECT_EQ(run(leaf_granules(world_.image())), world_.told());
}

TEST_F(DscowCheck, RepairsADamagedHeaderFromTheOther) {
  for (const uint64_t copy : {0u, 1u}) {
    top_->poke(copy * kBlock + 1000, Bytes(512, std::byte(0x55)));
    EXPECT_EQ(check_of(top_).leaks, 1u) << copy;
    EXPECT_EQ(check_of(top_).errors, 0u) << copy;
    EXPECT_EQ(check_of(top_, true).leaks_fixed, 1u) << copy;
    EXPECT_EQ(check_of(top_).leaks, 0u) << copy;
  }
}

TEST_F(DscowCheck, TellsOfAWrongBaseAndOfACutStore) {
  base_->poke(0, Bytes(512));
  EXPECT_EQ(check_of(top_, true, base_).errors, 1u);
  top_->set_size(top_->size() - kMiB);
  const CheckResult result = check_of(top_, true);
  EXPECT_EQ(result.errors, 1u);
  EXPECT_NE(result.findings.at(0).find("too small"), std::string::npos);
}

TEST_F(DscowCheck, LeavesAnAttachedStoreAlone) {
  base_->set_size(200 * kMiB + 512);
  run(world_.attach());
  const CheckResult result = check_of(top_);
  EXPECT_EQ(result.errors + result.leaks, 0u);
  EXPECT_EQ(result.findings.size(), 1u);
  CheckRequest repair;
  repair.top = top_;
  repair.repair = true;
  EXPECT_EQ(failure_of(check(repair)).first, EBUSY);
}

}  // namespace
}  // namespace cowd::dscow
