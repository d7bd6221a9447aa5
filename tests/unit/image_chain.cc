// SPDX-License-Identifier: GPL-2.0-or-later
// Images on other images: what a commit and a rebase leave, and what a power cut in the middle
// leaves of them. Nothing may be lost at any moment, and either can be done again.
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "cowd/core/image_compare.hh"
#include "cowd/core/image_io.hh"
#include "cowd/core/image_rebase.hh"
#include "tests/sim/image_world.hh"

namespace cowd {
namespace {

using namespace cowd::sim;

constexpr uint64_t kKiB = 1 << 10;
constexpr uint64_t kDisk = 192 * kKiB;

// A top over a base, both of them with something in them.
struct Pair {
  std::string top_format, base_format;
  std::shared_ptr<SimDisk> top, base;
  Bytes wanted;  // what is read through the top

  // Over copies of them, as they would be opened anew.
  Parts parts(std::shared_ptr<Disk> its_top, std::shared_ptr<Disk> its_base,
              const std::shared_ptr<Chain>& chain) const {
    Parts all{top_format, its_top};
    if (top_format == "dscow") {
      all.base = its_base;
    } else {
      chain->disks["base"] = its_base;
      all.chain = chain;
    }
    return all;
  }
};

void write_some(const Parts& parts, Bytes& model, uint64_t seed, int writes) {
  Random random(seed);
  std::unique_ptr<Image> image = run(open(parts, true));
  run(scribble(*image, random, writes, model));
  run(close(std::move(image), parts.top));
}

Pair make_pair(const std::string& top_format, const std::string& base_format, uint64_t base_bytes,
               uint64_t seed = 1) {
  Pair pair{top_format, base_format, nullptr, nullptr, {}};
  const Options small = base_format == "qcow2" ? Options{{"cluster_size", "4K"}} : Options{};
  pair.base = make("base", base_format, base_bytes, small);
  Bytes beneath(base_bytes);
  write_some({base_format, pair.base}, beneath, seed, 6);
  const auto chain = std::make_shared<Chain>();
  Parts parts = pair.parts(nullptr, pair.base, chain);
  Options options{{"granule", "4K"}};
  if (top_format != "dscow") options = {{"backing_file", "base"}, {"backing_fmt", base_format}};
  if (top_format == "qcow2") options["cluster_size"] = "4K";
  pair.top = make("top", top_format, kDisk, options, parts);
  pair.wanted = beneath;
  pair.wanted.resize(kDisk);
  parts.top = pair.top;
  write_some(parts, pair.wanted, seed + 1, 8);
  return pair;
}

Bytes first(const Bytes& bytes, uint64_t count) {
  return {bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(count)};
}

class ImageChain : public testing::Test {
 protected:
  using Work = std::function<void(const Pair&, std::shared_ptr<Disk>, std::shared_ptr<Disk>)>;
  using Verify =
      std::function<void(const Pair&, std::shared_ptr<SimDisk>, std::shared_ptr<SimDisk>)>;

  // The power goes before every operation of the work, and once not at all.
  static void cut_everywhere(const Pair& pair, const Work& work, const Verify& verify) {
    uint64_t most = 1;
    for (uint64_t nth = 0; nth <= most; nth++) {
      SCOPED_TRACE("operation " + std::to_string(nth));
      Random random(nth);
      const auto top = pair.top->copy(), base = pair.base->copy();
      top->record();
      base->record();
      Power power;
      if (nth < most) power.left = nth;
      bool cut = false;
      try {
        work(pair, std::make_shared<PoweredDisk>(top, power),
             std::make_shared<PoweredDisk>(base, power));
      } catch (const Error& error) {
        ASSERT_EQ(power.left, 0u) << error.what();
        cut = true;
      }
      if (nth == 0) {
        ASSERT_TRUE(cut);
        Power all;
        const auto one = pair.top->copy(), other = pair.base->copy();
        work(pair, std::make_shared<PoweredDisk>(one, all),
             std::make_shared<PoweredDisk>(other, all));
        most = all.used;
      }
      for (const Survives survives :
           {Survives::nothing, Survives::everything, Survives::anything, Survives::anything}) {
        const auto its_top = top->crash(top->log().size(), survives, random);
        const auto its_base = base->crash(base->log().size(), survives, random);
        ASSERT_NO_FATAL_FAILURE(verify(pair, its_top, its_base));
      }
    }
    EXPECT_GT(most, 10u);
  }

  static void commit_it(const Pair& pair, std::shared_ptr<Disk> top, std::shared_ptr<Disk> base) {
    const auto chain = std::make_shared<Chain>();
    const Parts parts = pair.parts(top, base, chain);
    run(sim::commit(parts, parts.chain ? chain : nullptr));
  }

  static void expect_no_errors(const Parts& parts) {
    const CheckResult result = check(parts);
    ASSERT_EQ(result.errors, 0u) << result.findings.at(0);
  }

  static void expect_the_disk(const Pair& pair, std::shared_ptr<SimDisk> top,
                              std::shared_ptr<SimDisk> base) {
    const Parts parts = pair.parts(top, base, std::make_shared<Chain>());
    expect_no_errors(parts);
    ASSERT_TRUE(bytes_of(parts) == pair.wanted) << "the disk reads otherwise";
    expect_no_errors({pair.base_format, base});
  }

  // Also: it can be done again, to the end.
  static void expect_committable(const Pair& pair, std::shared_ptr<SimDisk> top,
                                 std::shared_ptr<SimDisk> base) {
    expect_the_disk(pair, top, base);
    commit_it(pair, top, base);
    expect_the_disk(pair, top, base);
    expect_committed(pair, top, base);
  }

  static void expect_committed(const Pair& pair, std::shared_ptr<SimDisk> top,
                               std::shared_ptr<SimDisk> base) {
    const Bytes found = bytes_of({pair.base_format, base});
    ASSERT_GE(found.size(), kDisk);
    ASSERT_TRUE(first(found, kDisk) == pair.wanted) << "the base has not got all";
    const CheckResult result = check(pair.parts(top, base, std::make_shared<Chain>()));
    ASSERT_EQ(result.leaks, 0u) << result.findings.at(0);
    // Of a store the edges stay.
    const uint64_t most = pair.top_format == "dscow" ? 2 : UINT64_MAX;
    ASSERT_LE(result.allocated_granules, most);
    const std::unique_ptr<Image> image =
        run(open(pair.parts(top, base, std::make_shared<Chain>()), false));
    const std::vector<MapEntry> map = run(image->map({0, image->sectors()}));
    for (const MapEntry& each : map)
      EXPECT_TRUE(each.depth > 0 || pair.top_format == "dscow") << "the top has something left";
  }
};

TEST_F(ImageChain, ACommitSurvivesAPowerCut) {
  cut_everywhere(make_pair("qcow2", "qcow2", kDisk), commit_it, expect_committable);
}

TEST_F(ImageChain, ACommitToAShorterBaseSurvivesAPowerCut) {
  for (const std::string format : {"raw", "qcow2"})
    cut_everywhere(make_pair("qcow2", format, kDisk / 2 + 512), commit_it, expect_committable);
}

TEST_F(ImageChain, ACommitOfDscowSurvivesAPowerCut) {
  for (const uint64_t bytes : {kDisk, kDisk / 2 + 512, kDisk * 2})
    cut_everywhere(make_pair("dscow", "raw", bytes), commit_it, expect_committable);
}

TEST_F(ImageChain, ACommitOfQcowSurvivesAPowerCut) {
  for (const std::string format : {"raw", "qcow2", "qcow"})
    cut_everywhere(make_pair("qcow", format, kDisk), commit_it, expect_committable);
  cut_everywhere(make_pair("qcow", "raw", kDisk / 2 + 512), commit_it, expect_committable);
}

// Its name moves when there is nothing else behind it.
TEST_F(ImageChain, ACommitOfQcowSurvivesAPowerCutWhereItsNameIsLast) {
  const Pair pair = make_pair("qcow", "raw", kDisk);
  run(plugin("qcow").rebase({pair.top, "base", "raw"}));
  cut_everywhere(pair, commit_it, expect_committable);
}

// What the store did not show of its base is not shown afterwards either.
TEST_F(ImageChain, ABaseThatHasGrownShowsNothingMoreAfterACommit) {
  const Pair pair = make_pair("dscow", "raw", kDisk / 2);
  pair.base->set_size(kDisk * 2);
  const Bytes garbage(kDisk, std::byte{0xee});
  pair.base->poke(kDisk / 2, garbage);
  commit_it(pair, pair.top, pair.base);
  expect_the_disk(pair, pair.top, pair.base);
  expect_committed(pair, pair.top, pair.base);
}

// Between begin and end the store is known to be in the middle, and no checksum refuses it.
TEST_F(ImageChain, ADscowStoreIsUsedBetweenTwoAttemptsToCommitIt) {
  Pair pair = make_pair("dscow", "raw", kDisk);
  CommitRequest request;
  request.top = pair.top;
  request.base = pair.base;
  run(plugin("dscow").begin_commit(request));
  const Bytes half = first(pair.wanted, kDisk / 2);
  pair.base->poke(0, half);
  const Parts parts = pair.parts(pair.top, pair.base, nullptr);
  write_some(parts, pair.wanted, 7, 5);
  expect_committable(pair, pair.top, pair.base);
  // And after it the checksums count again.
  pair.base->poke(0, Bytes(4096, std::byte{0x11}));
  EXPECT_EQ(failure_of(open(parts, true)).first, ESTALE);
}

TEST_F(ImageChain, AnAttachedStoreIsNotCommitted) {
  const Pair pair = make_pair("dscow", "raw", kDisk);
  const std::unique_ptr<Image> image = run(open(pair.parts(pair.top, pair.base, nullptr), true));
  CommitRequest request;
  request.top = pair.top;
  request.base = pair.base;
  EXPECT_EQ(failure_of(plugin("dscow").begin_commit(request)).first, EBUSY);
}

TEST_F(ImageChain, ACommitThatKeepsTheTopChangesOnlyTheBase) {
  for (const std::string top : {"qcow2", "qcow", "dscow"}) {
    const Pair pair = make_pair(top, "raw", kDisk);
    const Bytes before = pair.top->peek(0, pair.top->size());
    const auto chain = std::make_shared<Chain>();
    const Parts parts = pair.parts(pair.top, pair.base, chain);
    const CommitCounts counts = run(sim::commit(parts, parts.chain ? chain : nullptr, false));
    EXPECT_GT(counts.copied, 0u);
    expect_the_disk(pair, pair.top, pair.base);
    EXPECT_TRUE(first(bytes_of({"raw", pair.base}), kDisk) == pair.wanted);
    if (top != "dscow") {
      EXPECT_TRUE(pair.top->peek(0, pair.top->size()) == before);
    }
  }
}

// An operation fails; what is left is as good as after a power cut.
TEST_F(ImageChain, ACommitThatFailsLosesNothing) {
  for (const std::string top_format : {"qcow2", "qcow", "dscow"}) {
    const Pair pair = make_pair(top_format, "raw", kDisk);
    bool failed = true;
    for (uint64_t nth = 1; failed; nth++) {
      SCOPED_TRACE(top_format + ", operation " + std::to_string(nth));
      failed = false;
      for (const bool on_top : {true, false}) {
        const auto top = pair.top->copy(), base = pair.base->copy();
        SimDisk& bad = on_top ? *top : *base;
        bad.fail(nth, EIO);
        try {
          commit_it(pair, top, base);
        } catch (const Error& error) {
          ASSERT_TRUE(bad.has_failed()) << error.what();
        }
        failed |= bad.has_failed();
        bad.fail(0, 0);
        ASSERT_NO_FATAL_FAILURE(expect_committable(pair, top, base));
      }
    }
  }
}

// --- rebase -----------------------------------------------------------------------------

// To a base that has some of it, some of it otherwise, and is shorter; by what `cowctl rebase`
// does.
class Rebase : public ImageChain {
 protected:
  Rebase() : other_(make("other", "raw", kDisk / 2 + 1024)) {
    Bytes ignored(kDisk / 2 + 1024);
    write_some({"raw", other_}, ignored, 9, 12);
  }

  static std::shared_ptr<Chain> chain_of(std::shared_ptr<Disk> base, std::shared_ptr<Disk> other) {
    const auto chain = std::make_shared<Chain>();
    chain->disks["base"] = std::move(base);
    chain->disks["a longer name of another base"] = std::move(other);
    return chain;
  }

  void rebase_it(const Pair& pair, std::shared_ptr<Disk> top, std::shared_ptr<Disk> base) const {
    const auto chain = chain_of(base, other_);
    std::unique_ptr<Image> next = run(open({"raw", other_}, false));
    std::unique_ptr<Image> image = run(open({pair.top_format, top, nullptr, chain}, true));
    run(copy_up(*image, next.get(), {}));
    run(close(std::move(image), top));
    run(plugin(pair.top_format).rebase({top, "a longer name of another base", "raw"}));
  }

  void expect_either(const Pair& pair, std::shared_ptr<SimDisk> top,
                     std::shared_ptr<SimDisk> base) const {
    const Parts parts{pair.top_format, top, nullptr, chain_of(base, other_)};
    expect_no_errors(parts);
    ASSERT_TRUE(bytes_of(parts) == pair.wanted) << "the disk reads otherwise";
  }

  const std::shared_ptr<SimDisk> other_;
};

TEST_F(Rebase, SurvivesAPowerCut) {
  for (const std::string format : {"qcow2", "qcow"}) {
    const Pair pair = make_pair(format, format, kDisk);
    cut_everywhere(
        pair, [this](const Pair& of, auto top, auto base) { rebase_it(of, top, base); },
        [this](const Pair& of, auto top, auto base) { expect_either(of, top, base); });
    rebase_it(pair, pair.top, pair.base);
    EXPECT_EQ(run(plugin(format).info(pair.top))["base"], "a longer name of another base");
  }
}

// The header alone, with all that may stand in it, on blocks of either size.
TEST_F(Rebase, TheHeaderHasTheOldNameOrTheNewOne) {
  const std::vector<std::pair<std::string, std::string>> names = {
      {"base", "raw"}, {std::string(1000, 'x'), "qcow2"},
      {"", ""},        {std::string(1023, 'y'), "vmdk"},
      {"b", "raw"},    {std::string(600, 'z'), "vhd"}};
  const std::vector<std::pair<std::string, Options>> kinds = {
      {"qcow2", {{"compat", "1.1"}}}, {"qcow2", {{"compat", "0.10"}}}, {"qcow", {}}};
  for (const uint32_t block : {512u, 4096u})
    for (const auto& [format, options] : kinds) {
      const auto disk = make("top", format, kDisk, options, {}, block);
      std::pair<std::string, std::string> now;
      for (int round = 0; round < 3; round++)
        for (const auto& next : names) {
          disk->record();
          run(plugin(format).rebase({disk, next.first, next.second}));
          for (size_t at = 0; at <= disk->log().size(); at++)
            for (uint64_t seed = 0; seed < 4; seed++) {
              Random random(seed);
              const auto found = disk->crash(at, Survives::anything, random);
              const nlohmann::json info = run(plugin(format).info(found));
              const std::pair<std::string, std::string> said = {
                  info.value("base", ""), info.value("backing-filename-format", "")};
              ASSERT_TRUE(said == now || said == next) << said.first << " in " << said.second;
              ASSERT_EQ(check({format, found}).errors, 0u);
            }
          const nlohmann::json info = run(plugin(format).info(disk));
          ASSERT_EQ(info.value("base", ""), next.first);
          now = next;
        }
    }
}

TEST_F(Rebase, ADryOneChangesNothing) {
  for (const std::string format : {"qcow2", "qcow"}) {
    const auto disk = make("top", format, kDisk);
    disk->reset_counts();
    run(plugin(format).rebase({disk, "base", "raw", true}));
    EXPECT_EQ(disk->counts().writes, 0u);
  }
}

// --- compare ----------------------------------------------------------------------------

TEST(Compare, ReadsNothingOfWhatIsZeroInBoth) {
  const auto one = make("one", "qcow2", 64 << 20), other = make("other", "qcow2", 96 << 20);
  const std::unique_ptr<Image> a = run(open({"qcow2", one}, false));
  const std::unique_ptr<Image> b = run(open({"qcow2", other}, false));
  one->reset_counts();
  EXPECT_EQ(run(compare_images(*a, *b, false, {})).kind, Difference::Kind::none);
  EXPECT_LT(one->counts().bytes_read, 1u << 20);
  EXPECT_EQ(run(compare_images(*a, *b, true, {})).kind, Difference::Kind::size);
}

TEST(Compare, FindsEachSectorThatDiffers) {
  const uint64_t sectors = 4096 + 77;  // more than one piece
  const auto same = std::make_shared<SimDisk>("same", sectors * 512);
  const auto image = run(open({"raw", same}, false));
  for (const uint64_t sector :
       {uint64_t{0}, uint64_t{1}, uint64_t{4095}, uint64_t{4096}, sectors - 1}) {
    const auto changed = same->copy();
    Bytes bytes = changed->peek(sector * 512, 512);
    bytes[sector % 512] ^= std::byte{1};
    changed->poke(sector * 512, bytes);
    const auto other = run(open({"raw", changed}, false));
    const Difference found = run(compare_images(*image, *other, false, {}));
    EXPECT_EQ(found.kind, Difference::Kind::content);
    EXPECT_EQ(found.offset, sector * 512);
  }
}

}  // namespace
}  // namespace cowd
