// SPDX-License-Identifier: GPL-2.0-or-later
// Random sequences of everything a guest, a kernel and a host do to an image, beside a guest
// that knows what it must read.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "formats/qcow2/image.hh"
#include "tests/sim/qcow2_world.hh"

namespace cowd::qcow2 {
namespace {

using namespace cowd::sim;

void expect_clean(Qcow2World& world, bool ask_qemu) {
  if (world.data && world.is_raw()) {
    // Whoever reads the data file alone reads the disk.
    run(world.kernel->attach());
    const Bytes all = run(world.kernel->read(0, world.guest->sectors()));
    EXPECT_EQ(world.data->peek(0, all.size()), all);
    world.kernel->die();
  }
  const CheckResult result = check_qcow2(world.top->copy());
  EXPECT_EQ(result.errors, 0u);
  EXPECT_EQ(result.leaks, 0u);
  for (const std::string& each : result.findings) ADD_FAILURE() << each;
  std::string output;
  if (ask_qemu) {
    EXPECT_EQ(qemu_check(*world.top, &output), 0) << output;
  }
}

TEST(Qcow2Image, AnySequenceReadsWhatWasWritten) {
  for (uint64_t seed = 1; seed <= 28; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const Shape& shape = qcow2_shapes()[seed % qcow2_shapes().size()];
    Qcow2World world(shape, seed, seed % 5 ? Durability::flush : Durability::always);
    const Range all{0, world.guest->sectors()};
    for (int round = 0; round < 2; round++) {
      run(world.play(all, 25));
      run(world.kernel->reattach());
      run(world.guest->verify());
      run(world.play(all, 15));
      run(world.kernel->detach());
      ASSERT_NO_FATAL_FAILURE(expect_clean(world, seed % 16 == 0));
      run(world.kernel->attach());
      run(world.guest->verify());
    }
    if (HasFailure()) return;
  }
}

TEST(Qcow2Image, ManyAtOnce) {
  for (uint64_t seed = 1; seed <= 16; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const Shape& shape = qcow2_shapes()[seed % qcow2_shapes().size()];
    Qcow2World world(shape, seed, seed % 5 ? Durability::flush : Durability::always);
    world.top->delay(seed, 6);
    std::vector<Task<>> tasks;
    const uint64_t part = world.guest->sectors() / 5 / 8 * 8;
    for (uint64_t i = 0; i < 5; i++) {
      const Range range{i * part, part};
      tasks.push_back(world.play(range, 25));
    }
    run_all(std::move(tasks));
    EXPECT_FALSE(world.top->buffer_changed());
    run(world.guest->verify());
    run(world.kernel->reattach());
    run(world.guest->verify());
    run(world.kernel->detach());
    ASSERT_NO_FATAL_FAILURE(expect_clean(world, seed % 16 == 0));
    run(world.kernel->attach());
    run(world.guest->verify());
    if (HasFailure()) return;
  }
}

// A granule that the end of the disk cuts is copied by us, while the kernel's are committed: both
// are in the entry of one cluster.
TEST(Qcow2Image, ACopyTakesBackNothingThatACommitLinks) {
  const Shape shape{kMiB + 32 * kKiB + 512, {{"cluster_size", "64K"}, {"extended_l2", "on"}}, 0};
  for (uint64_t seed = 1; seed <= 60; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Qcow2World world(shape, seed, Durability::always);
    world.top->delay(seed, 6);
    const uint64_t last = world.guest->sectors() - 1, cluster = kMiB / 512;
    std::vector<Task<>> tasks;
    tasks.push_back(world.guest->write({cluster, 4}));
    tasks.push_back(world.guest->write({cluster + 8, 4}));
    tasks.push_back(world.guest->write({last, 1}));
    run_all(std::move(tasks));
    run(world.kernel->detach());
    ASSERT_NO_FATAL_FAILURE(expect_clean(world, false));
    run(world.kernel->attach());
    ASSERT_NO_THROW(run(world.guest->verify()));
  }
}

// The kernel never forgets an overlay by itself: old ones are taken back.
TEST(Qcow2Image, OverlaysAreTakenBack) {
  for (uint64_t seed = 1; seed <= 10; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Qcow2World world(qcow2_shapes()[seed % qcow2_shapes().size()], seed);
    // One at a time, or, of 32, two.
    const size_t most = seed % 2 ? 3 : 32;
    dynamic_cast<Qcow2Image&>(world.kernel->image()).keep_runs(most);
    world.top->delay(seed, 4);
    std::vector<Task<>> tasks;
    const uint64_t part = world.guest->sectors() / 4 / 8 * 8;
    for (uint64_t i = 0; i < 4; i++) {
      const Range range{i * part, part};
      tasks.push_back(world.play(range, 30));
    }
    run_all(std::move(tasks));
    EXPECT_LE(world.kernel->overlays(), most + 1);
    run(world.guest->verify());
    run(world.kernel->detach());
    ASSERT_NO_FATAL_FAILURE(expect_clean(world, seed % 10 == 0));
    run(world.kernel->attach());
    run(world.guest->verify());
    if (HasFailure()) return;
  }
}

// After the replay, and before the kernel is made to forget what the cowd before gave it.
TEST(Qcow2Image, WhatIsPromotedWhileAnotherCowdBeginsCounts) {
  const auto top = make_qcow2(4 * kMiB, {{"cluster_size", "64K"}});
  make_room(top);
  std::unique_ptr<Image> image = run(open(qcow2_request(top)));
  const auto first = run(image->resolve({0, 128}, Access::write));
  const Extent given = std::get<Extent>(first.front());
  OpenRequest again = qcow2_request(top);
  again.reattach = true;
  image = run(open(std::move(again)));
  image->promoted({{0, 128}, given.write.dest, given.write.sector, 1, false});
  const auto other = run(image->resolve({1024, 128}, Access::write));
  EXPECT_NE(std::get<Extent>(other.front()).write, given.write);
  run(image->commit(1, true));
  const auto found = run(image->resolve({0, 8}, Access::read));
  EXPECT_EQ(std::get<Extent>(found.front()).read, given.write);
}

TEST(Qcow2Image, WholeClustersAreNotCopied) {
  Qcow2World world({4 * kMiB, {{"cluster_size", "64K"}}, 4 * kMiB, 512}, 1);
  run(world.guest->write({128, 128 * 4}));
  EXPECT_EQ(world.kernel->copied(), 0u);
  run(world.guest->write({1024 + 3, 1}));
  EXPECT_EQ(world.kernel->copied(), 127u);
}

TEST(Qcow2Image, OnlyTheSubclusterIsCopied) {
  const Options options{{"cluster_size", "64K"}, {"extended_l2", "on"}};
  Qcow2World world({4 * kMiB, options, 4 * kMiB, 512}, 1);
  run(world.guest->write({1024 + 1, 1}));  // subclusters have 4 sectors
  EXPECT_EQ(world.kernel->copied(), 3u);
  run(world.guest->write({1024 + 6, 4}));
  EXPECT_EQ(world.kernel->copied(), 3u + 2 + 2);
  run(world.kernel->detach());
  run(world.kernel->attach());
  run(world.guest->write({1024 + 33, 2}));
  EXPECT_EQ(world.kernel->copied(), 7u + 2);
  run(world.guest->verify());
  run(world.kernel->detach());
  // One cluster, of which 4 subclusters are here and 28 in the backing file.
  EXPECT_EQ(check_qcow2(world.top).allocated_granules, 1u);
  OpenRequest request = qcow2_request(world.top, world.references);
  request.read_only = true;
  const std::unique_ptr<Image> image = run(open(request));
  uint64_t here = 0;
  for (const MapEntry& entry : run(image->map({0, image->sectors()})))
    if (entry.depth == 0) here += entry.range.len;
  EXPECT_EQ(here, 4u * 4);
}

// Of a cluster that is read from two places each part is given by itself; it has one place.
TEST(Qcow2Image, AClusterOnTheEdgeOfTheBackingFileIsNotCopied) {
  const Options options{{"cluster_size", "64K"}, {"extended_l2", "on"}};
  Qcow2World world({kMiB, options, 512 * kKiB + 16 * kKiB, 512}, 1);
  run(world.guest->write({1024 + 24, 16}));
  EXPECT_EQ(world.kernel->copied(), 0u);
  run(world.guest->write({1024 + 61, 1}));
  EXPECT_EQ(world.kernel->copied(), 3u);
  run(world.guest->verify());
  run(world.kernel->detach());
  expect_clean(world, true);
  EXPECT_EQ(check_qcow2(world.top).allocated_granules, 1u);
}

TEST(Qcow2Image, SubclustersAreUnmappedOneByOne) {
  const Options options{{"cluster_size", "64K"}, {"extended_l2", "on"}};
  Qcow2World world({kMiB, options, kMiB, 512}, 1);
  run(world.guest->write({128, 128}));
  run(world.kernel->detach());
  run(world.kernel->attach());
  const uint64_t copied = world.kernel->copied();
  run(world.guest->zero({128, 4}));
  run(world.guest->zero({0, 8}));
  EXPECT_EQ(world.kernel->copied(), copied);
  run(world.guest->verify());
  run(world.kernel->detach());
  expect_clean(world, true);
  EXPECT_EQ(check_qcow2(world.top).allocated_granules, 1u);
  run(world.kernel->attach());
  run(world.guest->zero({128, 128}));
  run(world.guest->verify());
  run(world.kernel->detach());
  expect_clean(world, true);
  const std::unique_ptr<Image> image = run(open(qcow2_request(world.top, world.references)));
  const std::vector<MapEntry> map = run(image->map({128, 128}));
  EXPECT_EQ(map.size(), 1u);
  EXPECT_TRUE(map.at(0).zero && !map.at(0).has_offset && map.at(0).depth == 0);
}

// Zeroes are written where the data file is to be the disk, and kept as a flag where not.
TEST(Qcow2Image, ADataFile) {
  for (const char* raw : {"off", "on"}) {
    const Options options{{"data_file", "data.raw"}, {"data_file_raw", raw}};
    Qcow2World world({kMiB, options, 0, 512}, 1);
    EXPECT_EQ(world.data->size(), kMiB);
    run(world.guest->write({256, 256}));
    run(world.guest->flush());
    run(world.kernel->detach());
    run(world.kernel->attach());
    world.data->reset_counts();
    run(world.guest->zero({256, 128}));
    EXPECT_EQ(world.data->counts().writes != 0, world.is_raw());
    // A discard goes on to where the data is.
    const std::vector<Answer> answers = run(world.kernel->image().discard({384, 128}));
    ASSERT_EQ(answers.size(), 1u);
    EXPECT_EQ(std::get<Extent>(answers[0]).write, Side::at(1, 384));
    EXPECT_TRUE(run(world.kernel->image().discard({1024, 128})).empty());
    run(world.guest->verify());
    run(world.kernel->detach());
    ASSERT_NO_FATAL_FAILURE(expect_clean(world, true));
    EXPECT_EQ(check_qcow2(world.top).allocated_granules, world.is_raw() ? 2u : 1u);
    world.data->set_size(kMiB - 512);
    const auto [code, sentence] = failure_of(open(qcow2_request(world.top, world.references)));
    EXPECT_EQ(code, EROFS);
    EXPECT_NE(sentence.find("truncate -s 1048576"), std::string::npos) << sentence;
  }
}

TEST(Qcow2Image, ASequentialWriterFaultsRarely) {
  Qcow2World world({64 * kMiB, {{"cluster_size", "64K"}}, 0, 512}, 1);
  for (uint64_t at = 0; at < 64 * kMiB / 512; at += 8) {
    const Range range{at, 8};
    run(world.guest->write(range));
  }
  EXPECT_LT(world.kernel->faults(), 60u);
  run(world.kernel->detach());
  expect_clean(world, true);
}

// One write in each cluster, in an order that is none: 17 is prime to their number.
void write_here_and_there(Qcow2World& world, uint64_t clusters, uint64_t apart) {
  for (uint64_t i = 0; i < clusters; i++) {
    const Range range{(i * 17 + 5) % clusters * apart, 8};
    run(world.guest->write(range));
  }
}

TEST(Qcow2Image, WhoWritesAllOverARegionFaultsLessOften) {
  Qcow2World world({64 * kMiB, {{"cluster_size", "64K"}}, 0, 512}, 1);
  write_here_and_there(world, 1024, 128);
  EXPECT_LT(world.kernel->faults(), 512u);
  run(world.guest->verify());
  run(world.kernel->detach());
  expect_clean(world, true);
}

TEST(Qcow2Image, WhatIsSpreadThinlyTakesNoMoreThanTwiceItsRoom) {
  Qcow2World world({64 * kMiB, {{"cluster_size", "4K"}}, 0, 512}, 1);
  for (uint64_t i = 0; i < 64; i++) {
    const Range range{(i * 17 + 5) % 64 * 2048, 8};
    run(world.guest->write(range));
  }
  // And 32 tables.
  EXPECT_LE(world.kernel->image().stats()["claimed"].get<uint64_t>(), 2u * 64 + 32);
  run(world.kernel->detach());
  expect_clean(world, true);
}

// Over a backing file, with runs that begin within a cluster and where it changes from one place to
// another.
TEST(Qcow2Image, WhatLiesAroundIsReadFromBeneath) {
  for (const char* extended : {"off", "on"}) {
    const Options options{{"cluster_size", "64K"}, {"extended_l2", extended}};
    Qcow2World world({16 * kMiB, options, 8 * kMiB + 24 * kKiB, 512}, 1);
    write_here_and_there(world, 256, 128);
    run(world.guest->verify());
    run(world.kernel->detach());
    expect_clean(world, true);
    run(world.kernel->attach());
    run(world.guest->verify());
  }
}

TEST(Qcow2Image, WhatWasGivenInVainIsRoom) {
  Qcow2World world({16 * kMiB, {{"cluster_size", "4K"}}, 0, 512}, 1);
  run(world.kernel->detach());
  world.top->set_size(2 * kMiB);
  run(world.kernel->attach());
  // Half of the room is used, and most of the rest is given.
  write_here_and_there(world, 256, 8);
  for (uint64_t i = 0; i < 16; i++) {
    const Range range{8192 + i * 512, 8};
    run(world.guest->write(range));
  }
  // All but the tables' few clusters can be used.
  uint64_t used = 256 + 16;
  int code = 0;
  for (; code == 0; used++) {
    const Range range{16384 + (used - 272) * 8 * 3 % 16384, 8};
    code = failure_of(world.guest->write(range)).first;
  }
  EXPECT_EQ(code, ENOSPC);
  EXPECT_GT(used, 512u - 24);
  run(world.guest->verify({0, 8192}));
  run(world.kernel->detach());
  expect_clean(world, true);
}

TEST(Qcow2Image, ReadsAreOneExtentWhereTheImageIsInARow) {
  Qcow2World world({16 * kMiB, {{"cluster_size", "64K"}}, 0, 512}, 1);
  run(world.guest->write({0, 8 * kMiB / 512}));
  run(world.kernel->detach());
  run(world.kernel->attach());
  run(world.guest->verify());
  EXPECT_LE(world.kernel->faults(), 3u);
}

TEST(Qcow2Image, ACommitWithNothingToDoDoesNothing) {
  Qcow2World world(qcow2_shapes()[0], 1);
  world.top->reset_counts();
  run(world.kernel->image().commit(UINT64_MAX, false));
  EXPECT_EQ(world.top->counts().all(), 0u);
}

TEST(Qcow2Image, AReadOnlyImageIsNeverWrittenTo) {
  Qcow2World world(qcow2_shapes()[2], 3);
  run(world.guest->write({5, 300}));
  run(world.kernel->detach());
  world.top->set_read_only(true);
  world.top->reset_counts();
  run(world.kernel->attach());
  run(world.guest->verify());
  EXPECT_EQ(failure_of(world.guest->write({5, 1})).first, EROFS);
  run(world.kernel->image().close());
  EXPECT_EQ(world.top->counts().writes + world.top->counts().flushes, 0u);
}

TEST(Qcow2Image, NoRoomIsSaidAndWhatIsThereStays) {
  Qcow2World world({4 * kMiB, {{"cluster_size", "4K"}}, 0, 512}, 1);
  run(world.kernel->detach());
  world.top->set_size(kMiB);
  run(world.kernel->attach());
  int code = 0;
  uint64_t at = 0;
  for (; at < 8192 && code == 0; at += 64) {
    const Range range{at, 64};
    code = failure_of(world.guest->write(range)).first;
  }
  EXPECT_EQ(code, ENOSPC);
  EXPECT_GT(at, 1000u);
  run(world.guest->verify({0, at - 64}));
  run(world.kernel->detach());
  expect_clean(world, true);
}

TEST(Qcow2Image, WhatWasDiscardedIsRoomBeforeItIsCommitted) {
  Qcow2World world({kMiB, {{"cluster_size", "4K"}}, 0, 512}, 1);
  const Range all{0, world.guest->sectors()};
  run(world.guest->write(all));
  for (int i = 0; i < 3; i++) {
    run(world.kernel->detach());
    run(world.kernel->attach());
    run(world.guest->discard(all));
    run(world.guest->write(all));
    run(world.guest->verify());
  }
  run(world.kernel->detach());
  ASSERT_NO_FATAL_FAILURE(expect_clean(world, true));
}

// Each sector has what was there, what is written, or zeroes of the discard; whatever comes first,
// no cluster is given to two.
TEST(Qcow2Image, ADiscardOfWhatIsBeingWrittenFreesNothingThatIsLinked) {
  const Range all{0, 128};
  for (uint64_t seed = 1; seed <= 60; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Qcow2World world({kMiB, {{"cluster_size", "4K"}}, 0, 512}, seed);
    const Bytes old(all.len * 512, std::byte{1}), data(all.len * 512, std::byte{2});
    if (seed % 2) {
      run(world.kernel->write(0, old));
      run(world.kernel->detach());
      run(world.kernel->attach());
    }
    world.top->delay(seed, 6);
    std::vector<Task<>> tasks;
    tasks.push_back(world.kernel->write(3, std::span(data).first(40 * 512)));
    tasks.push_back(world.kernel->discard({0, 64}));
    tasks.push_back(world.kernel->flush());
    tasks.push_back(world.kernel->discard({32, 96}));
    tasks.push_back(world.kernel->write(64, std::span(data).first(30 * 512)));
    run_all(std::move(tasks));
    const Bytes found = run(world.kernel->read(0, all.len));
    for (const std::byte each : found) ASSERT_LE(std::to_integer<int>(each), 2);
    world.top->delay(seed, 0);
    run(world.kernel->detach());
    ASSERT_NO_FATAL_FAILURE(expect_clean(world, seed % 20 == 0));
    run(world.kernel->attach());
    ASSERT_TRUE(run(world.kernel->read(0, all.len)) == found);
  }
}

// An entry that is not empty and names no place: whoever took it for one would write to the header.
TEST(Qcow2Image, APlaceOfZeroIsNone) {
  Qcow2World world({kMiB, {{"cluster_size", "4K"}}, 0, 512}, 1);
  run(world.guest->write({8, 8}));
  run(world.kernel->detach());
  const Header header = run(read_header(*world.top));
  const Bytes l1 = world.top->peek(header.l1_offset, 8);
  Bytes entry(8);
  store_be<uint64_t>(entry, 0, kCopied);
  world.top->poke(load_be<uint64_t>(l1, 0) & kOffsetMask, entry);
  run(world.kernel->attach());
  run(world.guest->verify());
  run(world.guest->write({0, 3}));
  run(world.guest->verify());
  run(world.kernel->detach());
  EXPECT_EQ(run(read_header(*world.top)).l1_offset, header.l1_offset);
  expect_clean(world, true);
}

bool is_dirty(const Qcow2World& world) {
  return run(read_header(*world.top)).incompatible & kDirty;
}

// Without them a commit of new clusters is two writes and two flushes.
TEST(Qcow2Image, WithLazyRefcountsACommitIsOneWriteAndOneFlush) {
  Qcow2World world({kMiB, {{"lazy_refcounts", "on"}}, 0, 512}, 1);
  EXPECT_FALSE(is_dirty(world));
  run(world.guest->write({0, 1}));
  run(world.guest->flush());
  EXPECT_TRUE(is_dirty(world));
  run(world.guest->write({1000, 1}));
  world.top->reset_counts();
  run(world.kernel->timer());
  EXPECT_EQ(world.kernel->image().stats()["commits"], 2);
  const Counts counts = world.top->counts();
  EXPECT_EQ(counts.flushes, 2u);  // of data, and of the L2 entry
  EXPECT_EQ(counts.writes, 1u);
  EXPECT_GT(check_qcow2(world.top).errors, 0u);
  run(world.kernel->detach());
  const Header header = run(read_header(*world.top));
  EXPECT_EQ(header.compatible & kLazyRefcounts, kLazyRefcounts);
  EXPECT_EQ(header.incompatible & kDirty, 0u);
  expect_clean(world, true);
}

// It is not left to the next cowd to read all tables.
TEST(Qcow2Image, WithLazyRefcountsACleanStopIsNoCrash) {
  Qcow2World world({kMiB, {{"cluster_size", "4K"}, {"lazy_refcounts", "on"}}, 0, 512}, 1);
  run(world.guest->write({0, 100}));
  run(world.guest->flush());
  EXPECT_TRUE(is_dirty(world));
  run(world.kernel->image().pause());
  EXPECT_FALSE(is_dirty(world));
  EXPECT_EQ(check_qcow2(world.top).errors, 0u);
  run(world.guest->write({200, 100}));
  run(world.guest->flush());
  EXPECT_TRUE(is_dirty(world));
  run(world.kernel->reattach());
  EXPECT_FALSE(is_dirty(world));
  run(world.guest->verify());
  run(world.kernel->detach());
  expect_clean(world, true);
}

TEST(Qcow2Image, NoMoreLazyRefcountsAreOwedThanIsPromised) {
  const Options options{{"cluster_size", "4K"}, {"refcount_bits", "1"}, {"lazy_refcounts", "on"}};
  Qcow2World world({72 * kMiB, options, 0, 512}, 1);
  const uint64_t piece = 4 * kMiB / 512;
  uint64_t most = 0;
  for (uint64_t sector = 0; sector < world.guest->sectors(); sector += piece) {
    run(world.guest->write({sector, piece}));
    run(world.guest->flush());
    most = std::max(most, world.kernel->image().stats()["owed"].get<uint64_t>());
  }
  EXPECT_GT(most, kMaxOwed / 2);
  EXPECT_LE(most, kMaxOwed);
  run(world.kernel->detach());
  expect_clean(world, true);
}

TEST(Qcow2Image, AnImageMarkedAsCorruptIsReadAndStaysMarked) {
  Qcow2World world({kMiB, {{"cluster_size", "4K"}}, 0, 512}, 1);
  run(world.guest->write({0, 100}));
  run(world.kernel->detach());
  Bytes features(8);
  store_be<uint64_t>(features, 0, kCorrupt);
  world.top->poke(72, features);
  EXPECT_EQ(failure_of(world.kernel->attach()).first, EROFS);
  const Bytes all = image_bytes(world.top);
  EXPECT_TRUE(all == world.guest->expected());
  EXPECT_EQ(run(read_header(*world.top)).incompatible & kCorrupt, kCorrupt);
  EXPECT_EQ(check_qcow2(world.top).errors, 1u);
}

TEST(Qcow2Image, CloseTellsHowLongTheFileIs) {
  Qcow2World world({64 * kMiB, {}, 0, 512}, 1);
  run(world.guest->write({0, 1}));
  run(world.kernel->flush());
  run(world.kernel->image().close());
  const uint64_t used = world.kernel->image().used_bytes();
  EXPECT_GT(used, 4 * 64 * kKiB);
  EXPECT_LE(used, 7 * 64 * kKiB);
  world.top->set_size(used);
  EXPECT_EQ(qemu_check(*world.top), 0);
}

}  // namespace
}  // namespace cowd::qcow2
