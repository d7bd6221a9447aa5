// SPDX-License-Identifier: GPL-2.0-or-later
// What a qcow image says of itself, and what is refused.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <nlohmann/json.hpp>

#include "formats/growing/taken.hh"
#include "formats/qcow/header.hh"
#include "formats/qcow/qcow.hh"
#include "formats/raw/raw.hh"
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
  // The name of what lies beneath: on the header, on the first level, behind the end, too long.
  const auto named = [&](uint64_t offset, uint32_t bytes, uint16_t format_bytes = 0) {
    return fails([&](SimDisk& top) {
      put<uint64_t>(top, 8, offset);
      put<uint32_t>(top, 16, bytes);
      put<uint16_t>(top, 34, format_bytes);
    });
  };
  EXPECT_EQ(named(40, 8), EINVAL);
  EXPECT_EQ(named(48 + 24, 8), EINVAL);
  EXPECT_EQ(named(4090, 7), EINVAL);
  EXPECT_EQ(named(4090, 6, 1), EINVAL);
  EXPECT_EQ(named(~0ULL - 4, 8, 3), EINVAL);
  EXPECT_EQ(named(2000, 1024), EINVAL);
  EXPECT_EQ(named(2000, 8, 33), EINVAL);
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

// --- what lies beneath ----------------------------------------------------------------------

struct Backed {
  std::shared_ptr<Files> files = std::make_shared<Files>(
      std::map<std::string, Files::Opener>{{"raw", raw::open}, {"qcow", open}});
  GrowingFormat made = format();
  std::shared_ptr<SimDisk> base = std::make_shared<SimDisk>("base", kMiB / 2, 512, false);
  std::shared_ptr<SimDisk> top;

  explicit Backed(const std::string& name = "base", const std::string& base_format = "raw") {
    made.files = files;
    files->disks[name] = base;
    base->poke(0, Bytes(kMiB / 2, std::byte{'b'}));
    made.options = {{"backing_file", name}, {"backing_fmt", base_format}};
    if (base_format == "raw") top = make_image(made, kMiB);
  }
  OpenRequest to_open(bool read_only = true) const {
    OpenRequest asked = request(top, read_only);
    asked.references = files;
    return asked;
  }
  void forget_format() const { put<uint16_t>(*top, 34, 0); }
  void rebase_to(const std::string& file, const std::string& its_format) const {
    run(rebase({top, file, its_format}));
  }
};

TEST(QcowFormat, InfoSaysWhatItLiesOn) {
  const Backed it;
  nlohmann::json said = run(info(it.top));
  EXPECT_EQ(said["base"], "base");
  EXPECT_EQ(said["backing-filename"], "base");
  EXPECT_EQ(said["backing-filename-format"], "raw");
  EXPECT_EQ(said["virtual-size"], kMiB);
  it.forget_format();
  said = run(info(it.top));
  EXPECT_EQ(said["base"], "base");
  EXPECT_FALSE(said.contains("backing-filename-format"));
}

TEST(QcowFormat, ItIsAsLongAsItsBackingFileWhereNobodySaysOtherwise) {
  Backed it;
  it.top = make_image(it.made, 0);
  EXPECT_EQ(run(open(it.to_open()))->sectors(), kMiB / 1024);
  it.made.options["size"] = "64K";
  it.top = make_image(it.made, 0);
  EXPECT_EQ(run(open(it.to_open()))->sectors(), 128u);
}

TEST(QcowFormat, WhatCannotLieBeneathIsNotMade) {
  const auto fails = [](Options options, std::shared_ptr<Disk> base = nullptr) {
    const Backed it;
    CreateRequest asked;
    asked.top = std::make_shared<SimDisk>("image", 0, 512, false);
    asked.base = std::move(base);
    asked.size = kMiB;
    asked.options = std::move(options);
    asked.references = it.files;
    return failure_of(create(asked)).first;
  };
  EXPECT_EQ(fails({{"backing_file", "base"}}), EINVAL);
  EXPECT_EQ(fails({{"backing_fmt", "raw"}}), EINVAL);
  EXPECT_EQ(fails({{"backing_file", "nowhere"}, {"backing_fmt", "raw"}}), ENOENT);
  EXPECT_EQ(fails({{"backing_file", "base"}, {"backing_fmt", "other"}}), EINVAL);
  EXPECT_EQ(fails({{"backing_file", std::string(1024, 'x')}, {"backing_fmt", "raw"}}),
            ENAMETOOLONG);
  EXPECT_EQ(fails({}, std::make_shared<SimDisk>("base", kMiB, 512, false)), EINVAL);
  const Backed longest(std::string(1023, 'x'));
  EXPECT_EQ(failure_of(open(longest.to_open())).first, 0);
}

// qemu-img cannot write the format down. What is there is raw then, whatever is in it; and what is
// an image for sure is not served as if it were raw.
TEST(QcowFormat, WithoutAFormatItIsRawAndNothingElse) {
  const Backed it;
  it.forget_format();
  EXPECT_EQ(read_all(it.made, it.top)[1000], std::byte{'b'});
  const auto with_head = [&](const std::string& head) {
    it.base->poke(0, Bytes(4096));
    it.base->poke(0, std::as_bytes(std::span(head)));
    return failure_of(open(it.to_open()));
  };
  EXPECT_EQ(with_head(std::string(510, 'x') + "\x55\xaa").first, 0);  // a boot sector
  for (const std::string head : {"QFI\xfb", "KDMV", "COWD", "# Disk DescriptorFile", "conectix",
                                 "vhdxfile", "dscow\x1a\r\n"}) {
    const auto [code, sentence] = with_head(head);
    EXPECT_EQ(code, EINVAL) << head;
    EXPECT_NE(sentence.find("cowctl rebase -u -b base -F FORMAT"), std::string::npos) << sentence;
  }
  // The operator may say that it is raw all the same.
  it.rebase_to("base", "raw");
  EXPECT_EQ(read_all(it.made, it.top)[0], std::byte{'d'});
}

// Nothing is asked of the bytes behind the name, but for as many as the header says.
TEST(QcowFormat, TheFormatIsOnlyWhatTheHeaderSays) {
  const Backed it;
  put<uint16_t>(*it.top, 34, 2);
  EXPECT_NE(failure_of(open(it.to_open())).second.find("another format: ra"), std::string::npos);
}

TEST(QcowFormat, WhatItLiesOnIsNotOpenedWhereNothingIs) {
  const Backed it;
  EXPECT_EQ(failure_of(open(request(it.top))).first, EINVAL);
}

// No cluster is given the place of the name, or is taken for one that may lie there.
TEST(QcowFormat, NothingLiesOnTheName) {
  const Backed it;
  it.rebase_to("base", "raw");
  const uint64_t at = 4096;
  ASSERT_EQ(load_be<uint64_t>(it.top->peek(8, 8), 0), at);
  EXPECT_EQ(check_of(it.made, it.top).errors, 0u);
  {
    Life life(it.made, it.top, 1);
    life.attach();
    Guest guest(life.kernel, kMiB / 512, Bytes(kMiB / 2, std::byte{'b'}));
    run(guest.write({0, 64}));
    run(guest.verify());
    life.detach();
    EXPECT_TRUE(read_all(it.made, it.top) == guest.expected());
  }
  EXPECT_EQ(run(info(it.top))["base"], "base");
  EXPECT_EQ(check_of(it.made, it.top).errors, 0u);
  const auto first_level = load_be<uint64_t>(it.top->peek(40, 8), 0);
  put<uint64_t>(*it.top, load_be<uint64_t>(it.top->peek(first_level, 8), 0), at);
  EXPECT_EQ(check_of(it.made, it.top).errors, 1u);
  EXPECT_EQ(failure_of(open(it.to_open(false))).first, EINVAL);
}

// --- rebase and commit ----------------------------------------------------------------------

TEST(QcowFormat, AFileOfManyRebasesDoesNotGrow) {
  const Backed it;
  for (int i = 0; i < 20; i++) it.rebase_to(i % 2 ? "base" : std::string(1000, 'x'), "raw");
  EXPECT_LE(it.top->size(), 4 * 4096u);
  it.rebase_to("", "");
  EXPECT_FALSE(run(info(it.top)).contains("base"));
  EXPECT_TRUE(read_all(it.made, it.top) == Bytes(kMiB));
}

TEST(QcowFormat, WhatCannotBeNamedIsRefused) {
  const Backed it;
  const auto before = it.top->peek(0, it.top->size());
  const auto fails = [&](const std::string& file, const std::string& its_format) {
    return failure_of(rebase({it.top, file, its_format})).first;
  };
  EXPECT_EQ(fails("base", ""), EINVAL);
  EXPECT_EQ(fails(std::string(1024, 'x'), "raw"), ENAMETOOLONG);
  EXPECT_EQ(fails(std::string("a\0b", 3), "raw"), ENAMETOOLONG);
  EXPECT_EQ(fails("base", std::string(33, 'x')), ENAMETOOLONG);
  run(rebase({it.top, "other", "raw", true}));
  EXPECT_TRUE(it.top->peek(0, it.top->size()) == before);
}

// Its base is written to, so somebody must have said what that is.
TEST(QcowFormat, WithoutAFormatItIsNotCommitted) {
  const Backed it;
  CommitRequest asked;
  asked.top = it.top;
  EXPECT_EQ(failure_of(begin_commit(asked)).first, 0);
  it.forget_format();
  EXPECT_EQ(failure_of(begin_commit(asked)).first, EINVAL);
  EXPECT_EQ(failure_of(end_commit(asked)).first, EINVAL);
  it.rebase_to("", "");
  EXPECT_EQ(failure_of(begin_commit(asked)).first, EINVAL);
}

// Also where the name was behind all of its data.
TEST(QcowFormat, ACommittedImageIsShort) {
  const Backed it;
  Life life(it.made, it.top, 1);
  life.attach();
  Guest guest(life.kernel, kMiB / 512, Bytes(kMiB / 2, std::byte{'b'}));
  run(guest.write({0, 1024}));
  life.detach();
  it.rebase_to("base", "raw");
  EXPECT_GT(load_be<uint64_t>(it.top->peek(8, 8), 0), kMiB / 2);
  CommitRequest asked;
  asked.top = it.top;
  run(end_commit(asked));
  EXPECT_LE(it.top->size(), 2 * 4096u);
  EXPECT_EQ(run(info(it.top))["base"], "base");
  EXPECT_EQ(run(info(it.top))["backing-filename-format"], "raw");
  EXPECT_EQ(check_of(it.made, it.top).allocated_granules, 0u);
  EXPECT_EQ(read_all(it.made, it.top)[0], std::byte{'b'});
}

}  // namespace
}  // namespace cowd::qcow
