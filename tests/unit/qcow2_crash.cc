// SPDX-License-Identifier: GPL-2.0-or-later
// The power is cut before every event of what attaches, first writes, discards, commits and
// detaches do to an image, with what no flush covers lost, kept, or torn and mixed. What is
// found must check without errors (leaks are allowed), open, and have for each sector what
// was flushed or something newer.
#include <gtest/gtest.h>

#include "tests/sim/qcow2_world.hh"

namespace cowd::qcow2 {
namespace {

using namespace cowd::sim;

using Workload = Task<> (*)(Qcow2World&);

Task<> write(Qcow2World& world, uint64_t sector, uint64_t count) {
  const Range range{sector, count};
  co_await world.guest->write(range);
}

// New tables, new refcount blocks, partial clusters.
Task<> grow(Qcow2World& world) {
  for (uint64_t i = 0; i < 6; i++) {
    co_await write(world, i * 160 + i, 3 + i * 5);
    if (i % 2) co_await world.guest->flush();
  }
  co_await world.kernel->timer();
  co_await write(world, 1, 60);
  co_await world.guest->flush();
}

// Discards and zeroes, and writes again where they were.
Task<> unmap(Qcow2World& world) {
  co_await write(world, 0, 400);
  co_await world.guest->flush();
  const Range discarded{8, 100}, zeroed{160, 64}, again{16, 16};
  co_await world.kernel->detach();
  co_await world.kernel->attach();
  co_await world.guest->discard(discarded);
  co_await write(world, 600, 8);
  co_await world.guest->flush();
  co_await world.guest->zero(zeroed);
  co_await world.guest->flush();
  co_await world.guest->write(again);
  co_await write(world, 164, 30);
  co_await world.guest->flush();
  co_await world.guest->zero(zeroed);
  co_await world.guest->flush();
}

Task<> come_back(Qcow2World& world) {
  for (uint64_t i = 0; i < 3; i++) {
    co_await write(world, i * 200 + 5, 20);
    co_await world.guest->flush();
    co_await write(world, i * 200 + 90, 20);
    co_await world.kernel->detach();
    co_await world.kernel->attach();
  }
}

// The daemon is killed and restarted; the kernel tells again what was not committed.
Task<> restart(Qcow2World& world) {
  for (uint64_t i = 0; i < 3; i++) {
    co_await write(world, i * 200 + 5, 20);
    co_await world.kernel->reattach();
    co_await write(world, i * 200 + 40, 20);
    co_await world.guest->flush();
  }
}

// Writes parts of subclusters, in clusters that have some and that have none, and unmaps them.
Task<> subclusters(Qcow2World& world) {
  for (uint64_t i = 0; i < 5; i++) {
    co_await write(world, i * 150 + i, 3);
    co_await write(world, i * 150 + 20, 5 + i);
    if (i % 2) co_await world.guest->flush();
  }
  co_await world.kernel->detach();
  co_await world.kernel->attach();
  const Range discarded{150, 9}, zeroed{20, 3}, cluster{288, 32};
  co_await write(world, 27, 2);
  co_await world.guest->discard(discarded);
  co_await world.guest->zero(zeroed);
  co_await write(world, 40, 30);
  co_await world.guest->flush();
  co_await world.guest->discard(cluster);
  co_await write(world, 290, 2);
  co_await world.guest->flush();
  co_await world.kernel->reattach();
  co_await write(world, 300, 2);
  co_await world.guest->flush();
}

constexpr uint64_t kDataMarks = uint64_t{1} << 32;

// A data file whose events are noted in the log of the image, so that both are cut at once.
class DataFile : public SimDisk {
 public:
  using SimDisk::SimDisk;
  void note_in(SimDisk& log) { noted_in_ = &log; }
  Task<> write_at(uint64_t offset, std::span<const std::byte> in) override {
    co_await SimDisk::write_at(offset, in);
    note();
  }
  Task<> flush() override {
    co_await SimDisk::flush();
    note();
  }

 private:
  void note() {
    if (noted_in_) noted_in_->mark(kDataMarks + log().size());
  }
  SimDisk* noted_in_ = nullptr;
};

class Qcow2Crash : public testing::Test {
 protected:
  // `world` has the references with which the image was made, and `data` what is left of its
  // data file.
  void verify(const Qcow2World& world, const std::shared_ptr<SimDisk>& found, uint64_t mark,
              bool ask_qemu, const std::shared_ptr<SimDisk>& data = nullptr) {
    const auto references = std::make_shared<FakeReferences>(*world.references);
    if (data) references->add("data.raw", data);
    make_room(found);
    // Where the dirty bit says that refcounts are not up to date, they can be set right.
    const bool dirty = run(read_header(*found)).incompatible & kDirty;
    const std::shared_ptr<SimDisk> checked = dirty ? found->copy() : found;
    if (dirty) check_qcow2(checked, true);
    const CheckResult result = check_qcow2(checked);
    ASSERT_EQ(result.errors, 0u) << result.findings.at(0);
    if (dirty) {
      dirty_++;
      ASSERT_EQ(result.leaks, 0u);
    }
    if (ask_qemu) {
      std::string output;
      const int status = qemu_check(*found, &output, dirty);
      ASSERT_TRUE(status == 0 || status == 3) << output;
    }
    KernelModel after(qcow2_opener(found, references));
    run(after.attach());
    run(world.guest->verify_crash(after, mark));
    // What is found must be of use: write on, and close.
    Guest more(after, world.guest->sectors(), run(after.read(0, world.guest->sectors())));
    const Range range{8, 8};
    run(more.write(range));
    run(more.flush());
    run(more.verify());
    run(after.detach());
    ASSERT_EQ(check_qcow2(found).errors, 0u);
    if (dirty) {
      ASSERT_EQ(check_qcow2(found).leaks, 0u);
    }
  }

  // Where the log of the data file may have been when that of the image was at `at`.
  static std::pair<size_t, size_t> data_log_at(const Qcow2World& world, size_t at) {
    const std::vector<Event>& log = world.top->log();
    size_t low = 0, high = world.data->log().size();
    for (size_t i = 0; i < log.size(); i++) {
      if (log[i].kind != Event::Kind::mark || log[i].id < kDataMarks) continue;
      if (i >= at) {
        high = log[i].id - kDataMarks;
        break;
      }
      low = log[i].id - kDataMarks;
    }
    return {low, high};
  }

  void cut_everywhere(Qcow2World& world, uint64_t seed, size_t step) {
    const SimDisk& top = *world.top;
    Random random(seed);
    uint64_t mark = 0, cuts = 0;
    for (size_t at = 0; at <= top.log().size(); at++) {
      if (at > 0 && top.log()[at - 1].kind == Event::Kind::mark &&
          top.log()[at - 1].id < kDataMarks)
        mark = top.log()[at - 1].id;
      if (at % step) continue;
      for (const Survives survives :
           {Survives::nothing, Survives::everything, Survives::anything, Survives::anything}) {
        SCOPED_TRACE("seed " + std::to_string(seed) + ", event " + std::to_string(at));
        const bool ask_qemu = cuts++ % 41 == 0;
        std::shared_ptr<SimDisk> data;
        if (world.data) {
          const auto [low, high] = data_log_at(world, at);
          data = world.data->crash(low + random() % (high - low + 1), survives, random);
        }
        ASSERT_NO_FATAL_FAILURE(
            verify(world, top.crash(at, survives, random), mark, ask_qemu, data));
      }
    }
  }

  void cut(Workload workload, const Shape& shape, Durability durability = Durability::flush) {
    std::shared_ptr<DataFile> data;
    if (shape.options.count("data_file"))
      data = std::make_shared<DataFile>("data.raw", 512, 512, false);
    Qcow2World world(shape, 1, durability, data);
    world.top->record();
    if (data) data->record();
    if (data) data->note_in(*world.top);
    world.guest->mark_in(*world.top);
    run(workload(world));
    run(world.kernel->detach());
    cut_everywhere(world, 1, world.top->log().size() / 60 + 1);
  }
  void cut_lazily(Workload workload, Shape shape, Durability durability = Durability::flush) {
    shape.options["lazy_refcounts"] = "on";
    cut(workload, shape, durability);
    EXPECT_GT(dirty_, 20u);
  }

  uint64_t dirty_ = 0;  // images that were found with refcounts that are not up to date
};

const Shape kSmall{kMiB / 2, {{"cluster_size", "4K"}}, 0, 512};
const Shape kTiny{kMiB / 2, {{"cluster_size", "512"}}, 100 * kKiB + 512, 512};
const Shape kOn4K{kMiB / 2, {{"cluster_size", "4K"}}, kMiB, 512};

const Shape kExtended{kMiB / 2, {{"cluster_size", "16K"}, {"extended_l2", "on"}}, 0, 512};
const Shape kExtendedOnABase{
    kMiB / 2, {{"cluster_size", "16K"}, {"extended_l2", "on"}}, 100 * kKiB + 512, 512};
const Shape kData{kMiB / 2, {{"cluster_size", "4K"}, {"data_file", "data.raw"}}, kMiB, 512};
const Shape kRawData{
    kMiB / 2, {{"cluster_size", "4K"}, {"data_file", "data.raw"}, {"data_file_raw", "on"}}, 0, 512};

TEST_F(Qcow2Crash, Subclusters) { cut(subclusters, kExtended); }
TEST_F(Qcow2Crash, SubclustersOnABase) { cut(subclusters, kExtendedOnABase); }
TEST_F(Qcow2Crash, SubclustersThatWaitForTheirCommit) {
  cut(subclusters, kExtendedOnABase, Durability::always);
}
TEST_F(Qcow2Crash, SubclustersAfterADaemonRestarted) { cut(restart, kExtendedOnABase); }
TEST_F(Qcow2Crash, ADataFile) { cut(unmap, kData); }
TEST_F(Qcow2Crash, ARawDataFile) { cut(grow, kRawData); }

TEST_F(Qcow2Crash, WhileItGrows) { cut(grow, kSmall); }
TEST_F(Qcow2Crash, WhileRefcountsGrow) { cut(grow, kTiny); }
TEST_F(Qcow2Crash, WhileWritesWaitForTheirCommit) { cut(grow, kSmall, Durability::always); }
TEST_F(Qcow2Crash, AroundDiscardsAndZeroes) { cut(unmap, kSmall); }
TEST_F(Qcow2Crash, AroundDiscardsAndZeroesOverABase) { cut(unmap, kOn4K); }
TEST_F(Qcow2Crash, InOneOfManySessions) { cut(come_back, kOn4K); }
TEST_F(Qcow2Crash, AfterADaemonRestarted) { cut(restart, kOn4K); }

TEST_F(Qcow2Crash, WithLazyRefcounts) { cut_lazily(grow, kSmall); }
TEST_F(Qcow2Crash, WithLazyRefcountsThatGrow) { cut_lazily(grow, kTiny); }
TEST_F(Qcow2Crash, WithLazyRefcountsAsWritesWaitForTheirCommit) {
  cut_lazily(grow, kSmall, Durability::always);
}
TEST_F(Qcow2Crash, WithLazyRefcountsAroundDiscardsAndZeroes) { cut_lazily(unmap, kOn4K); }
TEST_F(Qcow2Crash, WithLazyRefcountsInOneOfManySessions) { cut_lazily(come_back, kOn4K); }
TEST_F(Qcow2Crash, WithLazyRefcountsAfterADaemonRestarted) { cut_lazily(restart, kOn4K); }
TEST_F(Qcow2Crash, WithLazyRefcountsOfSubclusters) { cut_lazily(subclusters, kExtendedOnABase); }

// 2 MiB is what the first table can describe.
TEST_F(Qcow2Crash, WhileTheRefcountTableGrows) {
  const Shape shape{3 * kMiB, {{"cluster_size", "512"}, {"refcount_bits", "64"}}, 0, 512};
  Qcow2World world(shape, 1);
  const Header before = run(read_header(*world.top));
  run(world.guest->write({0, 3700}));
  run(world.kernel->timer());
  EXPECT_EQ(run(read_header(*world.top)).refcount_table_offset, before.refcount_table_offset);
  world.top->record();
  world.guest->mark_in(*world.top);
  run(world.guest->flush());
  run(world.guest->write({4000, 300}));
  run(world.guest->flush());
  EXPECT_NE(run(read_header(*world.top)).refcount_table_offset, before.refcount_table_offset);
  run(world.guest->write({5000, 16}));
  run(world.kernel->detach());
  std::string output;
  EXPECT_EQ(qemu_check(*world.top, &output), 0) << output;
  cut_everywhere(world, 1, world.top->log().size() / 60 + 1);
}

TEST_F(Qcow2Crash, OfManyAtOnce) {
  for (uint64_t seed = 1; seed <= 4; seed++) {
    Qcow2World world(seed % 2 ? kSmall : kTiny, seed);
    world.top->delay(seed, 6);
    world.top->record();
    world.guest->mark_in(*world.top);
    std::vector<Task<>> tasks;
    for (uint64_t i = 0; i < 3; i++) {
      const Range part{i * 320, 320};
      tasks.push_back(world.play(part, 12));
    }
    run_all(std::move(tasks));
    run(world.kernel->detach());
    ASSERT_NO_FATAL_FAILURE(cut_everywhere(world, seed, world.top->log().size() / 25 + 1));
  }
}

// Crash, go on with what is there, crash again.
TEST_F(Qcow2Crash, AgainAndAgain) {
  for (uint64_t seed = 1; seed <= 12; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    Qcow2World first(seed % 2 ? kSmall : kTiny, seed);
    std::shared_ptr<SimDisk> disk = first.top;
    Bytes beneath = run(first.kernel->read(0, first.guest->sectors()));
    run(first.kernel->detach());
    for (int boot = 0; boot < 5; boot++) {
      Qcow2World world(seed % 2 ? kSmall : kTiny, seed * 10 + static_cast<uint64_t>(boot));
      world.kernel = std::make_unique<KernelModel>(qcow2_opener(disk, first.references), seed);
      world.guest = std::make_unique<Guest>(*world.kernel, kMiB / 1024, beneath);
      world.top = disk;
      make_room(disk);  // leaks add up, and so does what cowd makes
      disk->record();
      world.guest->mark_in(*disk);
      run(world.kernel->attach());
      const Range all{0, kMiB / 1024};
      run(world.play(all, 15));
      const size_t at = random() % (disk->log().size() + 1);
      uint64_t mark = 0;
      for (size_t i = 0; i < at; i++)
        if (disk->log()[i].kind == Event::Kind::mark) mark = disk->log()[i].id;
      disk = disk->crash(at, Survives::anything, random);
      world.references = first.references;
      ASSERT_NO_FATAL_FAILURE(verify(world, disk->copy(), mark, boot == 4));
      KernelModel after(qcow2_opener(disk, first.references));
      run(after.attach());
      beneath = run(after.read(0, kMiB / 1024));
      after.die();
    }
  }
}

}  // namespace
}  // namespace cowd::qcow2
