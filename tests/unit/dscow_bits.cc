// SPDX-License-Identifier: GPL-2.0-or-later
// The parts of dscow that do no I/O: bit strings, layout, uncommitted promotions.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "formats/common/crc32c.hh"
#include "formats/common/options.hh"
#include "formats/dscow/bits.hh"
#include "formats/dscow/identity.hh"
#include "formats/dscow/layout.hh"
#include "formats/dscow/regions.hh"
#include "formats/dscow/uncommitted.hh"
#include "tests/sim/run.hh"

namespace cowd::dscow {
namespace {

std::vector<bool> unpacked(std::span<const std::byte> bits) {
  std::vector<bool> values;
  for (size_t i = 0; i < bits.size() * 8; i++) values.push_back(get_bit(bits, i));
  return values;
}

TEST(DscowBits, AgreeWithAVectorOfBool) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 2000; round++) {
    Buffer bits(24), other(24);
    std::vector<bool> model(192), second(192);
    for (int i = 0; i < 4; i++) {
      const uint64_t first = random() % 192, count = random() % (193 - first);
      set_bits(bits, first, count);
      std::fill_n(model.begin() + static_cast<long>(first), count, true);
      const uint64_t from = random() % 192, length = random() % (193 - from);
      clear_bits(bits, from, length);
      std::fill_n(model.begin() + static_cast<long>(from), length, false);
    }
    ASSERT_EQ(unpacked(bits), model) << "round " << round;
    EXPECT_EQ(count_bits(bits),
              static_cast<uint64_t>(std::count(model.begin(), model.end(), true)));
    const uint64_t from = random() % 192, to = random() % 192;
    const uint64_t count = random() % (193 - std::max(from, to));
    or_bits(other, to, bits, from, count);
    for (uint64_t i = 0; i < count; i++) second[to + i] = second[to + i] || model[from + i];
    ASSERT_EQ(unpacked(other), second) << "round " << round;
    const uint64_t end = from + 1 + random() % (192 - from);
    uint64_t expected = from + 1;
    while (expected < end && model[expected] == model[from]) expected++;
    ASSERT_EQ(run_end(bits, from, end), expected) << "round " << round;
  }
}

TEST(DscowLayout, OfSixtyFourTebibytesHasATopOf64KiB) {
  const Geometry geometry = plan(64ULL << 40, 4096);
  EXPECT_EQ(geometry.top_bytes(), 64u << 10);
  EXPECT_EQ(geometry.pages(), 524288u);
  EXPECT_EQ(geometry.pages_offset, 8192u + (64u << 10));
  EXPECT_EQ(geometry.data_offset % kDataAlign, 0u);
  EXPECT_EQ(geometry.needed(), geometry.data_offset + (64ULL << 40));
}

TEST(DscowLayout, PlansNothingThatItWouldRefuse) {
  for (uint64_t size = 512; size < (1ULL << 52); size = size * 3 / 1024 * 512 + size + 512)
    for (uint32_t granule = kMinGranule; granule <= kMaxGranule; granule *= 2) {
      if (size / granule >= kMaxGranules) continue;
      EXPECT_EQ(problem_with(plan(size, granule)), "") << size << " " << granule;
    }
}

TEST(DscowLayout, RefusesWhatCannotBe) {
  const Geometry good = plan(1 << 30, 4096);
  for (const uint32_t granule : {0u, 512u, 2048u, 4097u, 12288u, 2u << 20}) {
    Geometry bad = good;
    bad.granule = granule;
    EXPECT_NE(problem_with(bad), "") << granule;
  }
  const auto with = [&](uint64_t Geometry::*field, uint64_t value) {
    Geometry bad = good;
    bad.*field = value;
    return problem_with(bad);
  };
  for (const uint64_t size : {0ULL, 513ULL, ~0ULL, ~511ULL, 1ULL << 52, 1ULL << 40})
    EXPECT_NE(with(&Geometry::size, size), "") << size;
  for (const uint64_t offset :
       std::vector<uint64_t>{0, 4096, 8193, good.pages_offset, ~0ULL, ~4095ULL})
    EXPECT_NE(with(&Geometry::top_offset, offset), "") << offset;
  for (const uint64_t offset :
       std::vector<uint64_t>{good.top_offset, good.pages_offset + 1, good.data_offset, ~4095ULL})
    EXPECT_NE(with(&Geometry::pages_offset, offset), "") << offset;
  for (const uint64_t offset : std::vector<uint64_t>{0, good.data_offset + 4096, 1ULL << 63})
    EXPECT_NE(with(&Geometry::data_offset, offset), "") << offset;
}

TEST(DscowRegions, CoverTheDiskWithoutGaps) {
  for (const uint32_t granule : {4096u, 65536u})
    for (const uint64_t size :
         {512u, 4096u, 4608u, 65536u, 65536u + 4096u, 1u << 20, (1u << 20) + 512u})
      for (const uint64_t base :
           {0u, 512u, 4096u, 5120u, 65536u, 70144u, 1u << 20, (1u << 20) + 512u, 1u << 21}) {
        uint64_t next = 0;
        for (const Region& region : regions_of(plan(size, granule), base)) {
          EXPECT_EQ(region.first, next);
          EXPECT_GT(region.count, 0u);
          next += region.count;
          const uint64_t begin = region.first * granule, end = next * granule;
          const bool cut = end > size || (begin < base && base < end);
          EXPECT_EQ(region.kind == Region::Kind::edge, cut)
              << size << " " << base << " " << granule;
          EXPECT_TRUE(region.kind != Region::Kind::over_base || end <= base);
          EXPECT_TRUE(region.kind != Region::Kind::over_zero || begin >= base);
        }
        EXPECT_EQ(next, plan(size, granule).granules());
      }
}

TEST(DscowUncommitted, TakesWhatSeqCoversAndGivesItBack) {
  Uncommitted set;
  set.add(10, 5, 1);
  set.add(kPageGranules - 1, 2, 2);  // over the end of a page
  set.add(20, 1, 3);
  EXPECT_EQ(set.granules(), 8u);
  EXPECT_FALSE(set.freeze(0));
  ASSERT_TRUE(set.freeze(2));
  EXPECT_EQ(set.frozen().size(), 2u);
  EXPECT_EQ(set.granules(), 8u);
  set.thaw();
  EXPECT_TRUE(set.frozen().empty());
  ASSERT_TRUE(set.freeze(2));
  set.forget();
  EXPECT_EQ(set.granules(), 1u);
  EXPECT_TRUE(set.touches(0));
  EXPECT_FALSE(set.touches(1));
  ASSERT_TRUE(set.freeze(~0ULL));
  set.forget();
  EXPECT_TRUE(set.empty());
}

TEST(DscowUncommitted, SetsTheBitsOfBothSets) {
  Uncommitted set;
  set.add(3, 2, 1);
  set.freeze(1);
  set.add(9, 1, 2);
  Buffer bits(kBlock), expected(kBlock);
  set.or_into(0, bits);
  set_bits(expected, 3, 2);
  set_bits(expected, 9, 1);
  EXPECT_EQ(bits, expected);
}

TEST(DscowUncommitted, KeepsARunThatGrowsWithOneSeqTogether) {
  Uncommitted set;
  for (uint64_t i = 0; i < 100; i++) set.add(i, 1, 5);
  set.freeze(5);
  EXPECT_EQ(set.frozen().at(0).size(), 1u);
}

TEST(DscowIdentity, SamplesLieInsideTheBaseAndBeginWithBlocks) {
  for (const uint64_t size :
       {512ULL, 4096ULL, 4608ULL, 1ULL << 20, 3ULL << 30, (1ULL << 62) + 512}) {
    for (size_t i = 0; i < kSamples; i++) {
      EXPECT_LT(sample_offset(size, i), size);
      EXPECT_EQ(sample_offset(size, i) % kBlock, 0u);
    }
    EXPECT_EQ(sample_offset(size, 0), 0u);
  }
  EXPECT_EQ(sample_offset(1 << 30, 1), 1u << 20);
  EXPECT_EQ(sample_offset(1 << 30, kSamples - 1), (1u << 30) - kBlock);
}

TEST(Common, Crc32cIsCastagnolis) {
  const char* text = "123456789";
  EXPECT_EQ(crc32c(std::as_bytes(std::span(text, 9))), 0xe3069283u);
}

TEST(Common, SizesAreReadAndWritten) {
  EXPECT_EQ(parse_size("size", "0"), 0u);
  EXPECT_EQ(parse_size("size", "4096"), 4096u);
  EXPECT_EQ(parse_size("size", "64K"), 65536u);
  EXPECT_EQ(parse_size("size", "10GiB"), 10ULL << 30);
  for (const char* wrong :
       {"", "K", "-1", "1.5G", "4X", "4KB", "4 K", "99999999999999999999", "20000000P"})
    EXPECT_THROW(parse_size("size", wrong), Error) << wrong;
  EXPECT_EQ(human_size(10ULL << 30), "10 GiB");
  EXPECT_EQ(human_size(1536), "1536 bytes");
  EXPECT_EQ(human_size(0), "0 bytes");
}

}  // namespace
}  // namespace cowd::dscow
