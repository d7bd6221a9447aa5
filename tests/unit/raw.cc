// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/raw/raw.hh"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/sim/run.hh"
#include "tests/sim/sim_disk.hh"

namespace cowd::raw {
namespace {

using sim::failure_of;
using sim::run;
using sim::SimDisk;

constexpr uint64_t kMiB = 1 << 20;

OpenRequest request(std::shared_ptr<Disk> top) {
  OpenRequest open;
  open.top = std::move(top);
  return open;
}

TEST(Raw, IsOneExtentOverTheWholeDisk) {
  const auto image = run(open(request(std::make_shared<SimDisk>("disk", kMiB))));
  EXPECT_EQ(image->sectors(), 2048u);
  const std::vector<Answer> initial = image->initial();
  ASSERT_EQ(initial.size(), 1u);
  const Extent& extent = std::get<Extent>(initial[0]);
  EXPECT_EQ(extent.range, (Range{0, 2048}));
  EXPECT_EQ(extent.read, Side::at(0, 0));
  EXPECT_EQ(extent.write, Side::at(0, 0));
  EXPECT_EQ(extent.granule, 0u);
  EXPECT_FALSE(extent.uncommitted);
  for (const Access access : {Access::read, Access::write})
    EXPECT_EQ(std::get<Extent>(run(image->resolve({8, 8}, access)).at(0)).range, extent.range);
}

TEST(Raw, PassesDiscardsAndZeroesDown) {
  const auto image = run(open(request(std::make_shared<SimDisk>("disk", kMiB))));
  EXPECT_EQ(std::get<Extent>(run(image->discard({0, 8})).at(0)).write, Side::at(0, 0));
  EXPECT_EQ(std::get<Extent>(run(image->zero({0, 8})).at(0)).write, Side::at(0, 0));
}

TEST(Raw, HasNoWriteSideWhereItIsReadOnly) {
  OpenRequest open_request = request(std::make_shared<SimDisk>("disk", kMiB));
  open_request.read_only = true;
  const auto image = run(open(open_request));
  EXPECT_EQ(std::get<Extent>(image->initial().at(0)).write, Side::fault());
  EXPECT_FALSE(image->destinations().at(0).writable);
  EXPECT_EQ(failure_of(image->resolve({0, 8}, Access::write)).first, EROFS);
  EXPECT_EQ(failure_of(image->discard({0, 8})).first, EROFS);
}

TEST(Raw, RefusesWhatIsNotItsOwn) {
  auto disk = std::make_shared<SimDisk>("disk", kMiB);
  OpenRequest with_base = request(disk);
  with_base.base = std::make_shared<SimDisk>("base", kMiB);
  EXPECT_EQ(failure_of(open(with_base)).first, EINVAL);
  OpenRequest transient = request(disk);
  transient.durability = Durability::transient;
  EXPECT_EQ(failure_of(open(transient)).first, EINVAL);
  EXPECT_EQ(failure_of(open(request(std::make_shared<SimDisk>("none", 0)))).first, EINVAL);
  const auto image = run(open(request(disk)));
  EXPECT_EQ(failure_of(image->resolve({2040, 16}, Access::read)).first, ERANGE);
  EXPECT_EQ(failure_of(image->map({~0ULL, 2})).first, ERANGE);
  disk->set_read_only(true);
  EXPECT_EQ(failure_of(open(request(disk))).first, EROFS);
}

TEST(Raw, CreateWritesNothingAndChecksTheSize) {
  auto disk = std::make_shared<SimDisk>("disk", kMiB);
  CreateRequest create_request;
  create_request.top = disk;
  create_request.size = kMiB;
  run(create(create_request));
  EXPECT_EQ(disk->counts().writes, 0u);
  create_request.size = 2 * kMiB;
  const auto [code, sentence] = failure_of(create(create_request));
  EXPECT_EQ(code, ENOSPC);
  EXPECT_NE(sentence.find("2 MiB"), std::string::npos);
  create_request.size = 0;
  create_request.options["granule"] = "4K";
  EXPECT_EQ(failure_of(create(create_request)).first, EINVAL);
}

TEST(Raw, MapsInfoAndFlushes) {
  auto disk = std::make_shared<SimDisk>("disk", kMiB);
  EXPECT_EQ(run(info(disk)).dump(), R"({"format":"raw","virtual-size":1048576})");
  const auto image = run(open(request(disk)));
  const std::vector<MapEntry> map = run(image->map({16, 32}));
  ASSERT_EQ(map.size(), 1u);
  EXPECT_EQ(map[0].range, (Range{16, 32}));
  EXPECT_EQ(map[0].offset, 8192u);
  EXPECT_EQ(map[0].disk, "disk");
  run(image->commit(1, true));
  EXPECT_EQ(disk->counts().flushes, 0u);
  run(image->commit(1, false));
  run(image->close());
  EXPECT_EQ(disk->counts().flushes, 2u);
  CheckRequest check_request;
  check_request.top = disk;
  EXPECT_EQ(run(check(check_request)).errors, 0u);
}

}  // namespace
}  // namespace cowd::raw
