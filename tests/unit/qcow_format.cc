// SPDX-License-Identifier: GPL-2.0-or-later
// What a qcow image says of itself, and what is refused.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <nlohmann/json.hpp>

#include "formats/growing/taken.hh"
#include "formats/qcow/header.hh"
#include "formats/qcow/qcow.hh"
#include "tests/sim/growing_world.hh"

namespace cowd::qcow {
namespace {

using namespace cowd::sim;

constexpr uint64_t kMiB = 1 << 20;

GrowingFormat format() { return {"qcow", false, create, open, check, room, {}}; }

OpenRequest request(std::shared_ptr<Disk> top, bool read_only = true) {
  OpenRequest made;
  made.top = std::move(top);
  made.read_only = read_only;
  return made;
}

template <typename T>
void put(SimDisk& disk, uint64_t offset, T value) {
  Bytes bytes(sizeof value);
  store_be<T>(bytes, 0, value);
  disk.poke(offset, bytes);
}

TEST(QcowFormat, InfoSaysWhatItIs) {
  const nlohmann::json said = run(info(make_image(format(), 5 * kMiB + 512)));
  EXPECT_EQ(said["format"], "qcow");
  EXPECT_EQ(said["virtual-size"], 5 * kMiB + 512);
  EXPECT_EQ(said["cluster-size"], 4096);
}

TEST(QcowFormat, DamagedHeadersAreRefused) {
  const auto fails = [](auto damage) {
    const auto top = make_image(format(), 8 * kMiB);
    damage(*top);
    const auto [code, sentence] = failure_of(open(request(top)));
    EXPECT_NE(sentence.find("image"), std::string::npos) << sentence;
    EXPECT_EQ(check_of(format(), top).errors, code == EINVAL ? 1u : 0u);
    return code;
  };
  EXPECT_EQ(fails([](SimDisk& top) { put<uint32_t>(top, 0, 0); }), EINVAL);
  EXPECT_EQ(fails([](SimDisk& top) { put<uint32_t>(top, 4, 2); }), EINVAL);
  EXPECT_EQ(fails([](SimDisk& top) { put<uint64_t>(top, 24, 0); }), EINVAL);
  EXPECT_EQ(fails([](SimDisk& top) { put<uint64_t>(top, 24, 1000); }), EINVAL);
  EXPECT_EQ(fails([](SimDisk& top) { put<uint64_t>(top, 24, ~511ULL); }), EINVAL);
  EXPECT_EQ(fails([](SimDisk& top) { put<uint8_t>(top, 32, 8); }), EINVAL);
  EXPECT_EQ(fails([](SimDisk& top) { put<uint8_t>(top, 32, 63); }), EINVAL);
  EXPECT_EQ(fails([](SimDisk& top) { put<uint8_t>(top, 33, 14); }), EINVAL);
  EXPECT_EQ(fails([](SimDisk& top) { put<uint32_t>(top, 36, 1); }), EINVAL);
  EXPECT_EQ(fails([](SimDisk& top) { put<uint64_t>(top, 40, 1ULL << 40); }), EINVAL);
  EXPECT_EQ(fails([](SimDisk& top) { put<uint64_t>(top, 48, 1ULL << 40); }), EINVAL);
  // What lies beneath has no format that could be trusted.
  const auto backed = [](SimDisk& top) {
    top.poke(4000, Bytes(8, std::byte('a')));
    put<uint64_t>(top, 8, 4000);
    put<uint32_t>(top, 16, 8);
  };
  EXPECT_EQ(fails(backed), EOPNOTSUPP);
}

TEST(QcowFormat, ClustersOnEachOtherAreTold) {
  const auto top = make_image(format(), kMiB);
  give_room(format(), *top);
  top->poke(8192, Bytes(4096));  // a table
  put<uint64_t>(*top, 48, 8192);
  put<uint64_t>(*top, 8192, 12288);
  EXPECT_EQ(check_of(format(), top).errors, 0u);
  // The second cluster, beside the first at 12288.
  const uint64_t packed = 1ULL << 63 | 100ULL << 51;
  for (const uint64_t entry : {12288UL, 8192UL, 1UL << 50, packed | 12288, packed | 8300}) {
    put<uint64_t>(*top, 8192 + 8, entry);
    EXPECT_EQ(check_of(format(), top).errors, 1u) << entry;
    EXPECT_EQ(failure_of(open(request(top, false))).first, EINVAL) << entry;
    EXPECT_EQ(failure_of(open(request(top))).first, 0) << entry;
  }
  // Compressed clusters may share.
  put<uint64_t>(*top, 8192, packed | 16384);
  put<uint64_t>(*top, 8192 + 8, packed | 16500);
  EXPECT_EQ(check_of(format(), top).errors, 0u);
}

TEST(QcowFormat, ADamagedCompressedClusterFailsAlone) {
  const auto top = make_image(format(), kMiB);
  give_room(format(), *top);
  top->poke(8192, Bytes(4096));
  put<uint64_t>(*top, 48, 8192);
  put<uint64_t>(*top, 8192, 1ULL << 63 | 100ULL << 51 | 12288);
  const auto image = run(open(request(top)));
  EXPECT_EQ(failure_of(image->resolve({0, 8}, Access::read)).first, EIO);
  EXPECT_EQ(failure_of(image->resolve({8, 8}, Access::read)).first, 0);
}

uint64_t most_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

// What is long is the file, which costs its maker nothing.
TEST(QcowFormat, ALongFileCostsLittle) {
  const auto top = make_image(format(), kMiB);
  top->set_size(1ULL << 44);
  put<uint64_t>(*top, 40, 1ULL << 43);  // the first level
  const uint64_t before = most_memory();
  EXPECT_EQ(check_of(format(), top).errors, 0u);
  EXPECT_LT(most_memory() - before, 64 * kMiB);
}

TEST(Taken, IsWhatWasSet) {
  growing::Taken taken;
  taken.set(3, 3);
  taken.set(60, 200);
  taken.set(1000, 1001);
  for (uint64_t at = 0; at < 1100; at++)
    EXPECT_EQ(taken.get(at), (at >= 60 && at < 200) || at == 1000) << at;
  EXPECT_EQ(taken.next_free(60, 500), 200u);
  EXPECT_EQ(taken.next_free(60, 150), 150u);
  EXPECT_EQ(taken.next_taken(0, 50), 50u);
  EXPECT_EQ(taken.next_taken(0, 500), 60u);
  EXPECT_EQ(taken.next_taken(200, 5000), 1000u);
  EXPECT_EQ(taken.next_taken(1001, 5000), 5000u);
  EXPECT_EQ(taken.next_free(4000, 5000), 4000u);
}

// 32 MiB of entries that name one table would be 256 GiB to read.
TEST(QcowFormat, OneTableIsNotReadAgainAndAgain) {
  const auto top = make_image(format(), 8ULL << 30);
  top->set_size(1 << 20);
  for (uint64_t i = 0; i < 4096; i++) put<uint64_t>(*top, 48 + i * 8, 64 << 10);
  top->reset_counts();
  EXPECT_GT(check_of(format(), top).errors, 0u);
  EXPECT_EQ(failure_of(open(request(top, false))).first, EINVAL);
  EXPECT_LT(top->counts().reads, 100u);
}

// 32 tables of 4 KiB, and room for four.
TEST(QcowFormat, MemoryIsBounded) {
  const auto top = make_image(format(), 64 * kMiB);
  Life life(format(), top, 1);
  life.attach();
  Guest guest(life.kernel, 64 * kMiB / 512);
  for (uint64_t at = 0; at < guest.sectors(); at += 4096) run(guest.write({at, 1}));
  life.detach();
  OpenRequest opening = request(top);
  opening.metadata_cache = 16 << 10;
  const auto image = run(open(opening));
  run(image->map({0, image->sectors()}));
  EXPECT_EQ(image->stats()["tables_cached"], 4);
  EXPECT_EQ(image->stats()["table_reads"], 32);
}

TEST(QcowFormat, NothingFuzzedDoesMoreThanFail) {
  Random random(1);
  const auto whole = make_image(format(), 3 * kMiB);
  give_room(format(), *whole);
  for (int i = 0; i < 100; i++) {
    const auto top = whole->copy();
    for (int j = 0; j < 3; j++)
      top->poke(random() % 80, Bytes(1 + random() % 8, std::byte(random())));
    try {
      const auto image = run(open(request(top, random() % 2)));
      run(image->map({0, std::min<uint64_t>(image->sectors(), 4000)}));
    } catch (const Error&) {
    }
    check_of(format(), top, random() % 2);
  }
}

// dm makes no device that ends within a block of what it lies on.
TEST(QcowFormat, ADiskThatEndsWithinABlockIsNoDevice) {
  const auto top = make_image(format(), 385 * 512);
  const auto large = std::make_shared<SimDisk>("large", kMiB, 4096, false);
  large->poke(0, top->peek(0, top->size()));
  KernelModel kernel(opener(format(), large, Durability::flush, true));
  const auto [code, sentence] = failure_of(kernel.attach());
  EXPECT_EQ(code, EINVAL);
  EXPECT_NE(sentence.find("385 sectors"), std::string::npos) << sentence;
}

// A file may be cut to what it uses, and a name of no bytes uses nothing.
TEST(QcowFormat, ANameOfNoBytesIsNowhere) {
  const auto top = make_image(format(), kMiB);
  Bytes offset(8);
  store_be<uint64_t>(offset, 0, 0xffffffff);
  top->poke(8, offset);
  EXPECT_EQ(check_of(format(), top).errors, 0u);
  EXPECT_TRUE(read_all(format(), top) == Bytes(kMiB));
}

}  // namespace
}  // namespace cowd::qcow
