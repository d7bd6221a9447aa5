// SPDX-License-Identifier: GPL-2.0-or-later
// The two-level bitmap: how much it reads, writes and flushes, and what a commit
// means for those who ask or promote while it is suspended.
#include <gtest/gtest.h>

#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>

#include "formats/dscow/bitmap.hh"
#include "tests/sim/dscow_world.hh"

namespace cowd::dscow {
namespace {

using namespace cowd::sim;

struct Spent {
  uint64_t reads, writes, flushes;
  bool operator==(const Spent&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Spent& spent) {
  return out << spent.reads << " reads, " << spent.writes << " writes, " << spent.flushes
             << " flushes";
}

class DscowBitmap : public testing::Test {
 protected:
  // What one commit of everything costs.
  Spent commit(bool data_flushed) {
    disk_->reset_counts();
    run(bits_.commit(~0ULL, data_flushed));
    const Counts& counts = disk_->counts();
    return {counts.reads, counts.writes, counts.flushes};
  }
  std::set<uint64_t> set_in(Bits& bits, uint64_t page) {
    std::set<uint64_t> all;
    const PagePtr found = run(bits.bits(page));
    for (uint64_t i = 0; i < kPageGranules; i++)
      if (get_bit(*found, i)) all.insert(page * kPageGranules + i);
    return all;
  }

  const std::shared_ptr<SimDisk> disk_ = make_store(kTiB);
  const Geometry geometry_ = plan(kTiB, 4096);
  DiskBits bits_{*disk_, geometry_};
  DscowBitmap() { run(bits_.load()); }
};

TEST_F(DscowBitmap, ACommitWithoutANewPageIsItsPagesAndOneFlush) {
  for (uint64_t page = 0; page < 3; page++) bits_.add(page * kPageGranules, 1, 1);
  EXPECT_EQ(commit(true), (Spent{0, 3 + 1, 2}));
  for (uint64_t page = 0; page < 3; page++) bits_.add(page * kPageGranules + 8, 1, 2);
  EXPECT_EQ(commit(true), (Spent{0, 3, 1}));
  EXPECT_EQ(disk_->counts().bytes_written, 3 * 512u);
  bits_.add(16, 1, 3);
  EXPECT_EQ(commit(false), (Spent{0, 1, 2}));
  EXPECT_EQ(commit(false), (Spent{0, 0, 0}));
}

TEST_F(DscowBitmap, WritesOnlyTheDeviceBlocksThatChange) {
  bits_.add(0, 1, 1);
  commit(true);
  bits_.add(4095, 2, 2);  // the last bit of one block, the first of the next
  bits_.add(9000, 1, 2);
  commit(true);
  EXPECT_EQ(disk_->counts().bytes_written, 3 * 512u);
}

TEST_F(DscowBitmap, PagesThatDoNotExistAreNeitherReadNorTrusted) {
  EXPECT_FALSE(bits_.any(77));
  disk_->reset_counts();
  EXPECT_TRUE(set_in(bits_, 77).empty());
  EXPECT_EQ(disk_->counts().reads, 0u);
}

TEST_F(DscowBitmap, SurvivesAReload) {
  bits_.add(5, 70000, 1);
  commit(false);
  DiskBits again(*disk_, geometry_);
  run(again.load());
  uint64_t count = 0;
  for (uint64_t page = 0; page < 4; page++) count += set_in(again, page).size();
  EXPECT_EQ(count, 70000u);
}

TEST_F(DscowBitmap, ACommitTakesWhatItsSeqCoversAndNoMore) {
  bits_.add(1, 1, 10);
  bits_.add(2, 1, 11);
  run(bits_.commit(10, true));
  DiskBits again(*disk_, geometry_);
  run(again.load());
  EXPECT_EQ(set_in(again, 0), (std::set<uint64_t>{1}));
  EXPECT_EQ(set_in(bits_, 0), (std::set<uint64_t>{1, 2}));
  EXPECT_EQ(bits_.stats()["uncommitted_granules"], 1);
}

TEST_F(DscowBitmap, AFailedCommitForgetsNothingAndCanBeRepeated) {
  for (uint64_t nth = 1; nth < 100; nth++) {
    const uint64_t granule = nth * 3 * kPageGranules / 2;
    bits_.add(granule, 1, nth);
    disk_->fail(nth % 7 + 1, EIO, SimDisk::kWrite | SimDisk::kFlush);
    const int code = failure_of(bits_.commit(nth, false)).first;
    EXPECT_EQ(bits_.stats()["uncommitted_granules"], code ? 1 : 0);
    EXPECT_EQ(set_in(bits_, granule / kPageGranules).count(granule), 1u);
    disk_->fail(0, 0);
    commit(false);
    DiskBits again(*disk_, geometry_);
    run(again.load());
    EXPECT_EQ(set_in(again, granule / kPageGranules).count(granule), 1u) << nth;
  }
}

TEST_F(DscowBitmap, RemembersABoundedNumberOfPages) {
  for (uint64_t page = 0; page < 2 * kCachedPages; page++)
    bits_.add(page * kPageGranules + page, 1, 1);
  const Spent spent = commit(true);
  EXPECT_EQ(spent.flushes, 2u);
  EXPECT_EQ(bits_.stats()["pages_cached"], kCachedPages);
  EXPECT_LE(disk_->most_under_way(), 32u);
  // The first pages have been forgotten and are read again.
  bits_.add(100, 1, 2);
  EXPECT_EQ(commit(true), (Spent{1, 1, 1}));
  EXPECT_EQ(set_in(bits_, 0), (std::set<uint64_t>{0, 100}));
}

TEST_F(DscowBitmap, WritesManyPagesAtOnce) {
  disk_->delay(1, 5);
  for (uint64_t page = 0; page < 200; page++) bits_.add(page * kPageGranules, 1, 1);
  commit(true);
  EXPECT_EQ(disk_->most_under_way(), 32u);
}

// --- while a commit is suspended ----------------------------------------------

struct Model {
  std::set<uint64_t> told;
  bool missed = false;
  uint64_t seq = 0;
};

Task<> turn() {
  auto executor = co_await boost::asio::this_coro::executor;
  co_await boost::asio::post(executor, boost::asio::use_awaitable);
}

Task<> promote_some(DiskBits& bits, Model& model, uint64_t seed) {
  Random random(seed);
  for (int i = 0; i < 60; i++) {
    const uint64_t granule = random() % 3 * kPageGranules + random() % 5000;
    model.told.insert(granule);
    bits.add(granule, 1, ++model.seq);
    co_await turn();
  }
}

Task<> commit_some(DiskBits& bits, Model& model) {
  for (int i = 0; i < 12; i++) {
    co_await bits.commit(model.seq, i % 2 == 0);
    co_await turn();
  }
}

Task<> ask_some(DiskBits& bits, Model& model, uint64_t seed) {
  Random random(seed);
  for (int i = 0; i < 40; i++) {
    const uint64_t page = random() % 3;
    const std::set<uint64_t> before = model.told;
    PagePtr found = empty_page();
    if (bits.any(page)) found = co_await bits.bits(page);
    for (const uint64_t granule : before)
      if (granule / kPageGranules == page && !get_bit(*found, granule % kPageGranules))
        model.missed = true;
    for (uint64_t bit = 0; bit < 5000; bit++)
      if (get_bit(*found, bit) && !model.told.count(page * kPageGranules + bit))
        model.missed = true;
    co_await turn();
  }
}

TEST(DscowBitmapConcurrency, NobodyMissesAPromotionWhateverTheOrder) {
  const auto empty = make_store(kGiB);
  for (uint64_t seed = 1; seed <= 300; seed++) {
    const auto disk = empty->copy();
    DiskBits bits(*disk, plan(kGiB, 4096));
    run(bits.load());
    disk->delay(seed, 12);
    Model model;
    std::vector<Task<>> tasks;
    tasks.push_back(promote_some(bits, model, seed));
    tasks.push_back(commit_some(bits, model));
    tasks.push_back(ask_some(bits, model, seed + 1));
    tasks.push_back(ask_some(bits, model, seed + 2));
    run_all(std::move(tasks));
    ASSERT_FALSE(model.missed) << "seed " << seed;
    ASSERT_FALSE(disk->buffer_changed()) << "seed " << seed;
    run(bits.commit(~0ULL, false));
    DiskBits again(*disk, plan(kGiB, 4096));
    run(again.load());
    for (const uint64_t granule : model.told)
      ASSERT_TRUE(get_bit(*run(again.bits(granule / kPageGranules)), granule % kPageGranules))
          << "seed " << seed;
  }
}

// A disk whose reads end when the test says so, with what they found when they began.
class SlowReads : public SimDisk {
 public:
  explicit SlowReads(const SimDisk& of) : SimDisk(of.name(), of.size()) {}
  Task<> read_at(uint64_t offset, std::span<std::byte> out) override {
    co_await SimDisk::read_at(offset, out);
    for (int i = 0; i < hold; i++) co_await turn();
  }
  int hold = 0;
};

Task<> ask(DiskBits& bits, PagePtr& answer) { answer = co_await bits.bits(0); }

Task<> commit_later(DiskBits& bits, SlowReads& disk) {
  co_await turn();
  disk.hold = 0;
  co_await bits.commit(~0ULL, true);
}

TEST(DscowBitmapConcurrency, ASlowReadDoesNotBringBackWhatACommitHasOvertaken) {
  const auto disk = std::make_shared<SlowReads>(*make_store(kGiB));
  CreateRequest request;
  request.top = disk;
  request.size = kGiB;
  run(create(request));
  {
    DiskBits before(*disk, plan(kGiB, 4096));
    run(before.load());
    before.add(1, 1, 1);
    run(before.commit(1, true));
  }
  DiskBits bits(*disk, plan(kGiB, 4096));
  run(bits.load());
  bits.add(2, 1, 1);
  disk->hold = 100;
  PagePtr answer;
  std::vector<Task<>> tasks;
  tasks.push_back(ask(bits, answer));
  tasks.push_back(commit_later(bits, *disk));
  run_all(std::move(tasks));
  EXPECT_TRUE(get_bit(*answer, 1));
  EXPECT_TRUE(get_bit(*answer, 2));
  EXPECT_TRUE(get_bit(*run(bits.bits(0)), 2));
}

// --- a huge disk --------------------------------------------------------------

TEST(DscowHuge, SixtyFourTebibytesAreAttachedByReadingTheTop) {
  const auto top = make_store(64 * kTiB);
  World world(top, nullptr);
  top->reset_counts();
  run(world.attach());
  // The headers twice and the top; one header.
  EXPECT_EQ(top->counts().reads, 3u);
  EXPECT_EQ(top->counts().bytes_read, 2 * 2 * kBlock + 64 * kKiB);
  EXPECT_EQ(top->counts().bytes_written, kBlock);
  const uint64_t last = world.geometry().granules() - 1;
  run(world.promote(last));
  top->reset_counts();
  run(world.flush());
  EXPECT_EQ(top->counts().bytes_written, kBlock + 512);
  run(world.attach(Durability::flush, true));
  const std::vector<MapEntry> map = run(world.image().map({0, world.image().sectors()}));
  ASSERT_EQ(map.size(), 2u);
  EXPECT_EQ(map[1].range, (Range{last * 8, 8}));
}

TEST(DscowHuge, DeviceBlocksOf4KiBAreKept) {
  const auto top = make_store(kGiB, nullptr, "4K", 4096);
  World world(top, nullptr);
  run(world.attach());
  run(world.promote(1));
  run(world.flush());
  run(world.promote(2));
  top->reset_counts();
  run(world.flush());
  EXPECT_EQ(top->counts().bytes_written, 4096u);
  run(world.detach());
}

}  // namespace
}  // namespace cowd::dscow
