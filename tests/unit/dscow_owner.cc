// SPDX-License-Identifier: GPL-2.0-or-later
// Who may attach a store, and what an attach leaves behind.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "formats/dscow/owner.hh"
#include "tests/sim/dscow_world.hh"

namespace cowd::dscow {
namespace {

using namespace cowd::sim;

OpenRequest by(std::shared_ptr<Disk> top, const std::string& host, const std::string& boot,
               bool reattach = false) {
  OpenRequest request = dscow_request(std::move(top), nullptr, boot);
  request.host_id = host;
  request.reattach = reattach;
  return request;
}

int code_of(OpenRequest request) { return failure_of(open(std::move(request))).first; }

TEST(DscowOwner, IsWrittenAtAttachAndClearedAtDetach) {
  const auto top = make_store(kMiB);
  const auto image = run(open(by(top, "a", "1")));
  Header header = run(Headers::read(*top)).current();
  EXPECT_EQ(header.owner.host, "a");
  EXPECT_EQ(header.owner.boot, "1");
  EXPECT_EQ(header.epoch, 1u);
  EXPECT_FALSE(header.clean);
  EXPECT_EQ(header.mode, Mode::flush);
  run(image->close());
  header = run(Headers::read(*top)).current();
  EXPECT_EQ(header.owner.host, "");
  EXPECT_TRUE(header.clean);
  EXPECT_EQ(header.epoch, 1u);
}

TEST(DscowOwner, AttachedTwiceIsRefused) {
  const auto top = make_store(kMiB);
  const auto image = run(open(by(top, "a", "1")));
  const auto [code, sentence] = failure_of(open(by(top, "a", "1")));
  EXPECT_EQ(code, EBUSY);
  EXPECT_NE(sentence.find("/dev/vg/cow is attached on this host already"), std::string::npos)
      << sentence;
  OpenRequest read_only = by(top, "a", "1");
  read_only.read_only = true;
  EXPECT_EQ(code_of(read_only), EBUSY);
}

TEST(DscowOwner, AnotherHostIsRefusedWithItsName) {
  const auto top = make_store(kMiB);
  const auto image = run(open(by(top, "a", "1")));
  for (const bool reattach : {false, true}) {
    const auto [code, sentence] = failure_of(open(by(top, "b", "1", reattach)));
    EXPECT_EQ(code, EBUSY);
    EXPECT_NE(sentence.find("machine id a (epoch 1)"), std::string::npos) << sentence;
  }
  run(image->close());
  EXPECT_EQ(code_of(by(top, "b", "1")), 0);
  EXPECT_EQ(run(Headers::read(*top)).current().epoch, 2u);
}

TEST(DscowOwner, ItsOwnCrashIsTakenOver) {
  const auto top = make_store(kMiB);
  const auto image = run(open(by(top, "a", "1")));
  EXPECT_EQ(code_of(by(top, "a", "2")), 0);
  const Header header = run(Headers::read(*top)).current();
  EXPECT_EQ(header.owner.boot, "2");
  EXPECT_EQ(header.epoch, 2u);
  // The one before must not clear what is not its own.
  EXPECT_EQ(failure_of(image->close()).first, ESTALE);
  EXPECT_EQ(run(Headers::read(*top)).current(), header);
}

TEST(DscowOwner, ARestartedDaemonKeepsIt) {
  const auto top = make_store(kMiB);
  const auto image = run(open(by(top, "a", "1")));
  const uint64_t writes = top->counts().writes;
  const auto again = run(open(by(top, "a", "1", true)));
  EXPECT_EQ(top->counts().writes, writes);
  run(again->close());
  EXPECT_EQ(code_of(by(top, "a", "1", true)), 0);
}

TEST(DscowOwner, ARestartedDaemonServesOnWhateverBecameOfTheBase) {
  const auto base = make_base(kMiB);
  const auto top = make_store(kMiB, base);
  World world(top, base);
  run(world.attach());
  base->poke(0, Bytes(512));
  run(world.attach(Durability::flush, true));
  run(world.detach());
  EXPECT_EQ(failure_of(world.attach(Durability::flush, true)).first, ESTALE);
}

TEST(DscowOwner, NeedsANameOfTheHost) {
  const auto top = make_store(kMiB);
  EXPECT_EQ(code_of(by(top, "", "1")), EINVAL);
  EXPECT_EQ(code_of(by(top, "a", "")), EINVAL);
  EXPECT_EQ(code_of(by(top, std::string(64, 'a'), "1")), EINVAL);
  EXPECT_EQ(code_of(by(top, std::string(63, 'a'), "1")), 0);
}

// Another host's take-over lands between our write and our second read.
class RacedDisk : public SimDisk {
 public:
  explicit RacedDisk(const SimDisk& of) : SimDisk(of.name(), of.size()) {
    poke(0, of.peek(0, of.size()));
  }
  Task<> flush() override {
    co_await SimDisk::flush();
    if (!raced_) {
      raced_ = true;
      Headers headers = co_await Headers::read(*this);
      Header theirs = headers.current();
      theirs.owner = {"b", "9", 42};
      co_await headers.write(*this, theirs);
    }
  }

 private:
  bool raced_ = false;
};

TEST(DscowOwner, TheSlowerOfTwoHostsGivesWay) {
  auto top = std::make_shared<RacedDisk>(*make_store(kMiB));
  const auto [code, sentence] = failure_of(open(by(top, "a", "1")));
  EXPECT_EQ(code, EBUSY);
  EXPECT_NE(sentence.find("machine id b"), std::string::npos) << sentence;
  EXPECT_EQ(run(Headers::read(*top)).current().owner.host, "b");
}

// --- persistent or transient, for life ----------------------------------------

TEST(DscowMode, APersistentStoreIsNoTransientOne) {
  const auto top = make_store(kMiB);
  World world(top, nullptr);
  run(world.attach());
  run(world.detach());
  EXPECT_EQ(failure_of(world.attach(Durability::transient)).first, EINVAL);
  run(world.attach(Durability::always));
  EXPECT_EQ(run(info(top))["mode"], "always");
}

TEST(DscowMode, ATransientStoreIsNoPersistentOne) {
  const auto top = make_store(kMiB);
  World world(top, nullptr);
  run(world.attach(Durability::transient));
  run(world.detach());
  const auto [code, sentence] = failure_of(world.attach());
  EXPECT_EQ(code, ESTALE);
  EXPECT_NE(sentence.find("cowctl create --force"), std::string::npos) << sentence;
}

TEST(DscowMode, ATransientStoreBeginsEmptyAndNeverWritesBits) {
  const auto base = make_base(kMiB + 512);
  const auto top = make_store(kMiB + 512, base);
  World world(top, base);
  run(world.attach(Durability::transient));
  top->reset_counts();
  run(world.promote(7, 2));
  EXPECT_EQ(run(leaf_granules(world.image())), (std::set<uint64_t>{7, 8}));
  run(world.flush());
  EXPECT_EQ(top->counts().writes, 2u);  // the data
  run(top->write_at(world.geometry().granule_offset(256), Bytes(512, std::byte{1})));
  run(world.detach());
  run(world.attach(Durability::transient));
  EXPECT_TRUE(run(leaf_granules(world.image())).empty());
  // The edge is the base's again.
  EXPECT_EQ(top->peek(world.geometry().granule_offset(256), 512), base->peek(kMiB, 512));
}

TEST(DscowMode, AfterARestartTheKernelTellsWhatATransientStoreHolds) {
  const auto base = make_base(kMiB + 512);
  const auto top = make_store(kMiB + 512, base);
  World world(top, base);
  run(world.attach(Durability::transient));
  run(world.promote(7, 2));
  run(top->write_at(world.geometry().granule_offset(256), Bytes(512, std::byte{1})));
  run(world.attach(Durability::transient, true));
  Promotion replay;
  replay.range = {7 * 8, 16};
  replay.dest_sector = world.geometry().granule_offset(7) / 512;
  replay.replay = true;
  world.image().promoted(replay);
  EXPECT_EQ(run(leaf_granules(world.image())), (std::set<uint64_t>{7, 8}));
  EXPECT_EQ(top->peek(world.geometry().granule_offset(256), 512), Bytes(512, std::byte{1}));
}

TEST(DscowMode, TransientAndReadOnlyIsRefused) {
  OpenRequest request = by(make_store(kMiB), "a", "1");
  request.read_only = true;
  request.durability = Durability::transient;
  EXPECT_EQ(code_of(request), EINVAL);
}

}  // namespace
}  // namespace cowd::dscow
