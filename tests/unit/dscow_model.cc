// SPDX-License-Identifier: GPL-2.0-or-later
// Random sequences of everything that is done to a store, beside a model that is a
// plain set of granules; with bases and disks of odd sizes.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "formats/dscow/regions.hh"
#include "tests/sim/dscow_world.hh"
#include "tests/sim/sequences.hh"

namespace cowd::dscow {
namespace {

using namespace cowd::sim;

struct Shape {
  uint64_t size;
  uint64_t base;  // 0: none
  const char* granule;
};

constexpr Shape kShapes[] = {{300 * kMiB, 0, "4K"},
                             {300 * kMiB + 512, 100 * kMiB + 1024, "4K"},
                             {700 * kMiB, 900 * kMiB, "8K"},
                             {5 * kGiB + 4096, 3 * kGiB + 65536, "64K"},
                             {40 * kGiB, 10 * kGiB + 512, "1M"},
                             {4096, 0, "4K"},
                             {1536, 1024, "16K"}};

// Of which cowctl is asked, too: they are written to files.
constexpr Shape kSmallShapes[] = {{kMiB, 0, "4K"},
                                  {kMiB + 512, 300 * kKiB + 1024, "4K"},
                                  {kMiB, 2 * kMiB, "8K"},
                                  {2 * kMiB + 4096, kMiB + 65536, "64K"},
                                  {3 * kMiB, kMiB + 512, "1M"}};

void save(const SimDisk& disk, const std::string& path) {
  const Bytes bytes = disk.peek(0, disk.size());
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

// What it prints, if it says that all is well.
std::string cowctl(const std::string& words) {
  FILE* pipe = popen(("COWD_PLUGIN_DIR=build/plugins build/bin/cowctl " + words).c_str(), "r");
  std::string output;
  std::array<char, 4096> some{};
  while (const size_t count = fread(some.data(), 1, some.size(), pipe))
    output.append(some.data(), count);
  EXPECT_EQ(pclose(pipe), 0) << words << ": " << output;
  return output;
}

class Sequence {
 public:
  Sequence(const Shape& shape, uint64_t seed)
      : base_(shape.base ? make_base(shape.base) : nullptr),
        top_(make_store(shape.size, base_, shape.granule, seed % 2 ? 512 : 4096)),
        geometry_(
            plan(shape.size, static_cast<uint32_t>(std::stoul(shape.granule)) *
                                 (std::string(shape.granule).back() == 'M' ? 1 << 20 : 1 << 10))),
        random_(seed) {
    for (const Region& region : regions_of(geometry_, shape.base))
      if (region.kind != Region::Kind::edge) overlays_.push_back(region);
    attach(false);
  }

  void play(int steps) {
    for (int i = 0; i < steps && !testing::Test::HasFatalFailure(); i++) step();
    run(image_->close());
    attach(false);
    compare();
  }

  // The files that cowctl sees hold what the model says.
  void ask_cowctl() {
    run(image_->close());
    const std::filesystem::path folder =
        std::filesystem::temp_directory_path() / ("dscow-model-" + std::to_string(getpid()));
    std::filesystem::create_directories(folder);
    std::string spec = "dscow:" + (folder / "store").string();
    save(*top_, folder / "store");
    if (base_) {
      save(*base_, folder / "base");
      spec += ":" + (folder / "base").string();
    }
    cowctl("check " + spec);
    const auto map = nlohmann::json::parse(cowctl("--json map " + spec));
    std::set<uint64_t> found, expected = model_;
    for (const auto& entry : map) {
      const auto start = entry.at("start").get<uint64_t>();
      const uint64_t end = start + entry.at("length").get<uint64_t>();
      for (uint64_t at = start; entry.at("depth") == 0 && entry.at("present") && at < end;
           at += geometry_.granule)
        found.insert(at / geometry_.granule);
    }
    for (const Region& region : regions_of(geometry_, base_ ? base_->size() : 0))
      if (region.kind == Region::Kind::edge) expected.insert(region.first);
    EXPECT_EQ(found, expected);
    std::filesystem::remove_all(folder);
  }

 private:
  void step() {
    switch (random_() % 10) {
      case 0: compare(); break;
      case 1: restart(); break;
      case 2:
        run(image_->close());
        waiting_.clear();
        attach(false);
        break;
      case 3: commit(seq_, true); break;
      case 4: commit(seq_ - std::min<uint64_t>(seq_, random_() % 4), false); break;
      default: promote();
    }
  }

  void attach(bool reattach) {
    OpenRequest request = dscow_request(top_, base_);
    request.reattach = reattach;
    image_ = run(open(request));
  }

  // The kernel tells the next daemon what was not committed.
  void restart() {
    attach(true);
    for (const auto& [seq, run] : waiting_) tell(run.first, run.second, seq);
  }

  void commit(uint64_t seq, bool flushed) {
    run(image_->commit(seq, flushed));
    waiting_.erase(waiting_.begin(), waiting_.upper_bound(seq));
  }

  void promote() {
    if (overlays_.empty()) return;
    const Region& region = overlays_[random_() % overlays_.size()];
    const uint64_t within = random_() % region.count;
    // Near the edges of pages as often as anywhere.
    const uint64_t longest =
        std::min<uint64_t>(region.count - within, random_() % 100 ? 20 : 70000);
    const uint64_t first = region.first + within, count = 1 + random_() % longest;
    seq_++;
    waiting_[seq_] = {first, count};
    for (uint64_t i = 0; i < count; i++) model_.insert(first + i);
    tell(first, count, seq_);
  }

  void tell(uint64_t first, uint64_t count, uint64_t seq) {
    Promotion promotion;
    const uint64_t sectors = geometry_.granule / 512;
    promotion.range = {first * sectors, count * sectors};
    promotion.dest_sector = geometry_.granule_offset(first) / 512;
    promotion.seq = seq;
    image_->promoted(promotion);
  }

  void compare() {
    ASSERT_EQ(run(leaf_granules(*image_)), model_);
    std::set<uint64_t> all = model_;
    for (const Region& region : regions_of(geometry_, base_ ? base_->size() : 0))
      if (region.kind == Region::Kind::edge) all.insert(region.first);
    ASSERT_EQ(run(promoted_granules(*image_, geometry_.granule)), all);
    CheckRequest request;
    request.top = top_;
    ASSERT_EQ(run(check(request)).errors, 0u);
  }

  std::shared_ptr<SimDisk> base_;
  std::shared_ptr<SimDisk> top_;
  const Geometry geometry_;
  Random random_;
  std::vector<Region> overlays_;
  std::unique_ptr<Image> image_;
  std::set<uint64_t> model_;
  std::map<uint64_t, std::pair<uint64_t, uint64_t>> waiting_;  // seq; first, count
  uint64_t seq_ = 0;
};

TEST(DscowModel, AnySequenceAgreesWithASetOfGranules) {
  const Seeds wanted = seeds(2000);
  for (uint64_t seed = wanted.first; seed < wanted.end(); seed++) {
    SCOPED_TRACE(again(seed));
    Sequence(kShapes[seed % std::size(kShapes)], seed).play(20);
    if (HasFatalFailure()) return;
  }
}

TEST(DscowModel, AnySequenceIsWhatCowctlTells) {
  const Seeds wanted = seeds(30);
  for (uint64_t seed = wanted.first; seed < wanted.end() && !HasFailure(); seed++) {
    SCOPED_TRACE(again(seed));
    Sequence sequence(kSmallShapes[seed % std::size(kSmallShapes)], seed);
    sequence.play(20);
    sequence.ask_cowctl();
  }
}

// One granule's bit in every entry must say the same as the granule's leaf, wherever
// a map of a part of the disk begins and ends.
TEST(DscowModel, APartOfAMapIsAPartOfTheWhole) {
  const auto base = make_base(100 * kMiB + 1024);
  World world(make_store(300 * kMiB + 512, base), base);
  run(world.attach());
  Random random(3);
  for (int i = 0; i < 200; i++) run(world.promote(random() % 25600, 1));
  const uint64_t sectors = world.image().sectors();
  const std::vector<MapEntry> whole = run(world.image().map({0, sectors}));
  const auto at = [&](uint64_t sector) {
    return *std::find_if(whole.begin(), whole.end(),
                         [&](const MapEntry& e) { return sector < e.range.end(); });
  };
  for (int i = 0; i < 500; i++) {
    const uint64_t first = random() % sectors, count = 1 + random() % (sectors - first);
    uint64_t next = first;
    for (const MapEntry& entry : run(world.image().map({first, count}))) {
      ASSERT_EQ(entry.range.sector, next);
      const MapEntry expected = at(next);
      EXPECT_EQ(entry.depth, expected.depth);
      EXPECT_EQ(entry.present, expected.present);
      EXPECT_EQ(entry.offset - entry.range.sector * 512 * entry.has_offset,
                expected.offset - expected.range.sector * 512 * expected.has_offset);
      next = entry.range.end();
    }
    ASSERT_EQ(next, first + count);
  }
}

}  // namespace
}  // namespace cowd::dscow
