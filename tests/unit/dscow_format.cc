// SPDX-License-Identifier: GPL-2.0-or-later
// What create writes, and what is refused, with a sentence that helps.
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "formats/common/crc32c.hh"
#include "formats/dscow/headers.hh"
#include "formats/dscow/operations.hh"
#include "tests/sim/dscow_world.hh"

namespace cowd::dscow {
namespace {

using namespace cowd::sim;

Header sample_header() {
  Header header;
  header.sequence = 7;
  header.geometry = plan(10 * kGiB, 65536);
  header.mode = Mode::always;
  header.clean = false;
  header.epoch = 3;
  header.owner = {"host", "boot", 0x1122334455667788};
  header.base.size = 5 * kGiB;
  header.base.uuid[3] = std::byte{9};
  for (size_t i = 0; i < kSamples; i++)
    header.base.samples[i] = static_cast<uint32_t>(i * 0x01010101);
  header.base_locator = "nbd://host:10809/export";
  return header;
}

// As a program of ours would have it, with some bytes changed and the CRC made good.
void damage(SimDisk& disk, size_t copy, size_t at, std::vector<int> values, bool fix_crc) {
  Bytes block = disk.peek(copy * kBlock, kBlock);
  for (size_t i = 0; i < values.size(); i++) block[at + i] = std::byte(values[i]);
  if (fix_crc) {
    store_le<uint32_t>(block, 8, 0);
    store_le<uint32_t>(block, 8, crc32c(block));
  }
  disk.poke(copy * kBlock, block);
}

CreateRequest create_request(std::shared_ptr<Disk> top, uint64_t size) {
  CreateRequest request;
  request.top = std::move(top);
  request.size = size;
  return request;
}

TEST(DscowHeader, IsReadAsItWasWritten) {
  Buffer block(kBlock);
  encode(sample_header(), block);
  const Decoded decoded = decode(block);
  EXPECT_EQ(decoded.problem, "");
  EXPECT_EQ(decoded.header, sample_header());
}

TEST(DscowHeader, AnyDamagedByteIsNoticed) {
  Buffer block(kBlock);
  encode(sample_header(), block);
  for (size_t at = 0; at < kBlock; at++) {
    Buffer bad = block;
    bad[at] ^= std::byte{0x10};
    EXPECT_NE(decode(bad).problem, "") << "byte " << at;
  }
}

TEST(DscowHeader, KeepsBytesThatItDoesNotKnow) {
  const auto disk = make_store(kMiB);
  damage(*disk, 0, 3000, {1, 2, 3}, true);
  Headers headers = run(Headers::read(*disk));
  run(headers.write(*disk, headers.current()));
  EXPECT_EQ(disk->peek(kBlock + 3000, 3), disk->peek(3000, 3));
}

TEST(DscowHeader, AnyTornUpdateLeavesTheOldOrTheNew) {
  for (unsigned kept = 0; kept < 256; kept++) {
    const auto disk = make_store(kMiB);
    Headers headers = run(Headers::read(*disk));
    for (int update = 0; update < 3; update++) {
      const Header before = headers.current();
      Header next = before;
      next.owner.host = "host-" + std::to_string(update) + std::string(40, 'x');
      next.base_locator = std::string(1500, static_cast<char>('a' + update));
      const size_t copy = 1 - headers.current_copy();
      const Bytes old = disk->peek(copy * kBlock, kBlock);
      run(headers.write(*disk, next));
      const auto torn = disk->copy();
      for (size_t sector = 0; sector < 8; sector++)
        if (!(kept >> sector & 1))
          torn->poke(copy * kBlock + sector * 512, std::span(old).subspan(sector * 512, 512));
      Header found = run(Headers::read(*torn)).current();
      EXPECT_TRUE(found == before || found == headers.current()) << kept << " " << update;
    }
  }
}

TEST(DscowHeader, ATornUpdateIsWrittenOverByTheNext) {
  const auto disk = make_store(kMiB);
  damage(*disk, 1, 700, {1}, false);
  Headers headers = run(Headers::read(*disk));
  EXPECT_EQ(headers.current_copy(), 0u);
  EXPECT_NE(headers.problem(1), "");
  run(headers.write(*disk, headers.current()));
  EXPECT_EQ(headers.problem(1), "");
  EXPECT_EQ(run(Headers::read(*disk)).problem(1), "");
}

TEST(DscowCreate, WritesHeadersAndTopAndNothingElse) {
  const uint64_t size = 64 * kTiB;
  auto top = std::make_shared<SimDisk>("cow", plan(size, 4096).needed());
  run(create(create_request(top, size)));
  // The headers twice, the top of 64 KiB.
  EXPECT_EQ(top->counts().bytes_written, 2 * 2 * kBlock + 64 * kKiB);
  EXPECT_LE(top->counts().writes, 4u);
  EXPECT_LE(top->counts().reads, 1u);
}

TEST(DscowCreate, RefusesWhatIsTooSmallAndSaysHowMuchItNeeds) {
  auto top = std::make_shared<SimDisk>("/dev/vg/cow", 10 * kMiB);
  const auto [code, sentence] = failure_of(create(create_request(top, 10 * kMiB)));
  EXPECT_EQ(code, ENOSPC);
  EXPECT_NE(sentence.find("/dev/vg/cow"), std::string::npos);
  EXPECT_NE(sentence.find("has 10485760 bytes and needs 11534336"), std::string::npos) << sentence;
  EXPECT_EQ(top->counts().writes, 0u);
}

TEST(DscowCreate, RefusesOptionsThatCannotBe) {
  auto top = std::make_shared<SimDisk>("cow", 10 * kMiB);
  const auto code_of = [&](uint64_t size, Options options, std::shared_ptr<Disk> base = nullptr) {
    CreateRequest request = create_request(top, size);
    request.options = std::move(options);
    request.base = std::move(base);
    return failure_of(create(request)).first;
  };
  EXPECT_EQ(code_of(0, {}), EINVAL);
  EXPECT_EQ(code_of(513, {}), EINVAL);
  EXPECT_EQ(code_of(kMiB, {{"granule", "2K"}}), EINVAL);
  EXPECT_EQ(code_of(kMiB, {{"granule", "12K"}}), EINVAL);
  EXPECT_EQ(code_of(kMiB, {{"granule", "2M"}}), EINVAL);
  EXPECT_EQ(code_of(kMiB, {{"granule", "x"}}), EINVAL);
  EXPECT_EQ(code_of(kMiB, {{"cluster", "4K"}}), EINVAL);
  EXPECT_EQ(code_of(kMiB, {{"size", "2M"}}), EINVAL);
  EXPECT_EQ(code_of(8192 * kTiB, {}), EINVAL);
  EXPECT_EQ(code_of(0, {}, top), EINVAL);
  EXPECT_EQ(code_of(0, {}, std::make_shared<SimDisk>("empty", 0)), EINVAL);
  EXPECT_EQ(code_of(0, {}, std::make_shared<SimDisk>(std::string(3000, 'x'), kMiB)), ENAMETOOLONG);
  top->set_read_only(true);
  EXPECT_EQ(code_of(kMiB, {}), EROFS);
  EXPECT_EQ(top->counts().writes, 0u);
  top->set_read_only(false);
  EXPECT_EQ(code_of(0, {{"size", "2M"}, {"granule", "64K"}}), 0);
  EXPECT_EQ(run(info(top))["virtual-size"], 2 * kMiB);
}

TEST(DscowCreate, OverwritesNothingThatItKnowsWithoutForce) {
  const std::vector<std::pair<uint64_t, std::string>> marks = {
      {0, "dscow\x1a\r\n"}, {4096, "dscow\x1a\r\n"}, {1080, "\x53\xef"},   {0, "XFSB"},
      {65600, "_BHRfS_M"},  {512, "LABELONE"},       {4086, "SWAPSPACE2"}, {0, "LUKS\xba\xbe"},
      {32769, "CD001"},     {510, "\x55\xaa"},       {512, "EFI PART"},    {0, "QFI\xfb"}};
  for (const auto& [offset, mark] : marks) {
    auto top = std::make_shared<SimDisk>("cow", 10 * kMiB, 512, false);
    top->poke(offset, std::as_bytes(std::span(mark)));
    CreateRequest request = create_request(top, kMiB);
    EXPECT_EQ(failure_of(create(request)).first, EEXIST) << mark;
    EXPECT_EQ(top->counts().writes, 0u);
    request.force = true;
    run(create(request));
    for (const Signature& found : find_signatures(top->peek(0, kSignatureSpan)))
      EXPECT_EQ(found.what, "a dscow store") << mark;
  }
}

TEST(DscowCreate, SaysWhatIsThere) {
  const auto top = make_store(kMiB);
  const auto [code, sentence] = failure_of(create(create_request(top, kMiB)));
  EXPECT_EQ(code, EEXIST);
  EXPECT_EQ(
      sentence,
      "/dev/vg/cow holds a dscow store: to lose that and make a dscow store there, say --force.");
}

TEST(DscowOpen, RefusesWhatIsNoStore) {
  const auto code_of = [](std::shared_ptr<Disk> top) {
    return failure_of(open(dscow_request(top))).first;
  };
  EXPECT_EQ(code_of(std::make_shared<SimDisk>("zeroes", kMiB, 512, false)), EMEDIUMTYPE);
  EXPECT_EQ(code_of(std::make_shared<SimDisk>("garbage", kMiB)), EMEDIUMTYPE);
  EXPECT_EQ(code_of(std::make_shared<SimDisk>("tiny", 4096)), EMEDIUMTYPE);
  EXPECT_EQ(code_of(std::make_shared<SimDisk>("nothing", 0)), EMEDIUMTYPE);
  const auto both = make_store(kMiB);
  damage(*both, 0, 600, {1}, false);
  damage(*both, 1, 600, {1}, false);
  EXPECT_EQ(code_of(both), EUCLEAN);
}

TEST(DscowOpen, RefusesAStoreThatWasCutOff) {
  const auto top = make_store(10 * kMiB);
  top->set_size(top->size() - 4096);
  const auto [code, sentence] = failure_of(open(dscow_request(top)));
  EXPECT_EQ(code, ENOSPC);
  EXPECT_NE(sentence.find("needs 11534336"), std::string::npos) << sentence;
}

TEST(DscowOpen, RefusesFieldsThatCannotBe) {
  struct Case {
    size_t at;
    std::vector<int> values;
  };
  for (const Case& wrong : std::vector<Case>{{48, {1}},
                                             {52, {0, 0, 0, 1}},
                                             {56, {0, 0}},
                                             {64, {0, 0x20}},
                                             {72, {0, 0, 1}},
                                             {79, {0x80}},
                                             {80, {1}},
                                             {81, {0}},
                                             {84, {9}},
                                             {92, {31}}}) {
    const auto top = make_store(10 * kMiB);
    for (size_t copy = 0; copy < 2; copy++) damage(*top, copy, wrong.at, wrong.values, true);
    EXPECT_EQ(failure_of(open(dscow_request(top))).first, EUCLEAN) << "byte " << wrong.at;
  }
}

TEST(DscowOpen, RefusesVersionsAndFeaturesThatItDoesNotKnow) {
  for (const auto& [at, value] :
       std::vector<std::pair<size_t, int>>{{12, 2}, {40, 1}, {47, 0x80}}) {
    const auto top = make_store(kMiB);
    for (size_t copy = 0; copy < 2; copy++) damage(*top, copy, at, {value}, true);
    EXPECT_EQ(failure_of(open(dscow_request(top))).first, EOPNOTSUPP) << at;
    EXPECT_EQ(failure_of(info(top)).first, EOPNOTSUPP) << at;
    EXPECT_EQ(top->counts().writes, make_store(kMiB)->counts().writes);
  }
}

TEST(DscowOpen, UnknownReadOnlyFeaturesMakeItReadOnlyAndCompatibleOnesDoNot) {
  const auto top = make_store(kMiB);
  for (size_t copy = 0; copy < 2; copy++) damage(*top, copy, 24, {4}, true);
  EXPECT_TRUE(run(open(dscow_request(top)))->destinations()[0].writable);
  const auto other = make_store(kMiB);
  for (size_t copy = 0; copy < 2; copy++) damage(*other, copy, 32, {4}, true);
  const uint64_t writes = other->counts().writes;
  const auto image = run(open(dscow_request(other)));
  EXPECT_FALSE(image->destinations()[0].writable);
  EXPECT_EQ(failure_of(image->resolve({0, 8}, Access::write)).first, EROFS);
  run(image->close());
  EXPECT_EQ(other->counts().writes, writes);
}

TEST(DscowOpen, RefusesADiskThatCannotBeWritten) {
  const auto top = make_store(kMiB);
  top->set_read_only(true);
  EXPECT_EQ(failure_of(open(dscow_request(top))).first, EROFS);
  OpenRequest request = dscow_request(top);
  request.read_only = true;
  EXPECT_FALSE(run(open(request))->destinations()[0].writable);
}

// Headers that are consistent for the CRC and mean anything.
TEST(DscowOpen, SurvivesHeadersFromAnyHand) {
  const auto good = make_store(10 * kMiB);
  Random random(11);
  int opened = 0;
  for (int round = 0; round < 5000; round++) {
    const auto top = good->copy();
    std::vector<int> values;
    for (uint64_t i = 0; i <= random() % 8; i++)
      values.push_back(random() % 2 ? static_cast<int>(random() % 256) : random() % 2 ? 255 : 0);
    const size_t at = 16 + random() % 260;
    for (size_t copy = 0; copy < 2; copy++) damage(*top, copy, at, values, true);
    CheckRequest request;
    request.top = top;
    failure_of(check(request));
    failure_of(info(top));
    opened += failure_of(open(dscow_request(top))).first == 0;
  }
  EXPECT_GT(opened, 100);
  EXPECT_LT(opened, 4000);
}

class DscowBase : public testing::Test {
 protected:
  std::pair<int, std::string> open_with(std::shared_ptr<Disk> base) {
    return failure_of(open(dscow_request(top_->copy(), std::move(base))));
  }
  const std::shared_ptr<SimDisk> base_ = make_base(10 * kMiB);
  const std::shared_ptr<SimDisk> top_ = make_store(0 + 10 * kMiB, base_);
};

TEST_F(DscowBase, ThatWasNamedIsAccepted) { EXPECT_EQ(open_with(base_).first, 0); }

TEST_F(DscowBase, MissingOrUnwantedIsRefused) {
  const auto [code, sentence] = open_with(nullptr);
  EXPECT_EQ(code, EINVAL);
  EXPECT_NE(sentence.find("/dev/vg/base"), std::string::npos);
  EXPECT_EQ(failure_of(open(dscow_request(make_store(kMiB), base_))).first, EINVAL);
}

TEST_F(DscowBase, ShrunkIsRefused) {
  base_->set_size(9 * kMiB);
  const auto [code, sentence] = open_with(base_);
  EXPECT_EQ(code, ESTALE);
  EXPECT_NE(sentence.find("has 9437184 bytes, the base '/dev/vg/base' had 10485760"),
            std::string::npos)
      << sentence;
}

TEST_F(DscowBase, GrownIsAccepted) {
  base_->set_size(12 * kMiB);
  EXPECT_EQ(open_with(base_).first, 0);
}

TEST_F(DscowBase, ChangedAtASampleIsRefused) {
  const Bytes block(512, std::byte{1});
  base_->poke(kMiB, block);
  const auto [code, sentence] = open_with(base_);
  EXPECT_EQ(code, ESTALE);
  EXPECT_NE(sentence.find("at byte 1048576"), std::string::npos) << sentence;
}

TEST_F(DscowBase, WithAnotherFileSystemIsToldByUuid) {
  Bytes super(4096);
  super[1080] = std::byte{0x53};
  super[1081] = std::byte{0xef};
  super[1128] = std::byte{0xab};
  base_->poke(0, super);
  const auto [code, sentence] = open_with(base_);
  EXPECT_EQ(code, ESTALE);
  EXPECT_NE(sentence.find("UUID ab000000-0000-0000-0000-000000000000"), std::string::npos)
      << sentence;
  EXPECT_NE(sentence.find("nothing with a UUID is expected"), std::string::npos) << sentence;
}

TEST(DscowBaseSize, OfAnyNumberOfSectorsWorks) {
  for (const uint64_t size : std::vector<uint64_t>{512, 4608, kMiB + 512, 10 * kMiB - 512}) {
    const auto base = make_base(size);
    const auto top = make_store(size, base);
    EXPECT_EQ(failure_of(open(dscow_request(top->copy(), base))).first, 0) << size;
    // The same bytes on a larger disk of 4 KiB blocks.
    auto larger = std::make_shared<SimDisk>("larger", 12 * kMiB, 4096);
    larger->poke(0, base->peek(0, size));
    EXPECT_EQ(failure_of(open(dscow_request(top->copy(), larger))).first, 0) << size;
  }
}

TEST(DscowInfo, TellsWhatTheHeaderSays) {
  const auto base = make_base(10 * kMiB);
  const auto top = make_store(20 * kMiB, base, "64K");
  const nlohmann::json fresh = run(info(top));
  EXPECT_EQ(fresh["format"], "dscow");
  EXPECT_EQ(fresh["virtual-size"], 20 * kMiB);
  EXPECT_EQ(fresh["granule"], 65536);
  EXPECT_EQ(fresh["base"], "/dev/vg/base");
  EXPECT_EQ(fresh["mode"], "unused");
  EXPECT_EQ(fresh["clean"], true);
  EXPECT_FALSE(fresh.contains("owner"));
  const auto image = run(open(dscow_request(top, base)));
  EXPECT_EQ(run(info(top))["owner"]["host"], "host-a");
  EXPECT_EQ(run(info(top))["clean"], false);
  damage(*top, 0, 700, {1}, false);
  EXPECT_EQ(run(info(top))["damaged-header"], "copy 0: its checksum is wrong");
}

// --- the worked example in the documentation ---------------------------------

// As hexdump -C shows it, lines of zeroes left out.
std::string hexdump(const SimDisk& disk, uint64_t offset, uint64_t length) {
  std::string text;
  for (uint64_t at = offset; at < offset + length; at += 16) {
    const Bytes bytes = disk.peek(at, 16);
    if (bytes == Bytes(16)) continue;
    char part[32];
    std::snprintf(part, sizeof part, "%08llx ", static_cast<unsigned long long>(at));
    std::string line = part, readable;
    for (size_t i = 0; i < 16; i++) {
      const auto byte = std::to_integer<unsigned>(bytes[i]);
      std::snprintf(part, sizeof part, i == 8 ? "  %02x" : " %02x", byte);
      line += part;
      readable += byte >= 32 && byte < 127 ? static_cast<char>(byte) : '.';
    }
    text += line + "  |" + readable + "|\n";
  }
  return text;
}

// The text between ```dump NAME and ``` of docs/dscow.md.
std::string documented(const std::string& name) {
  std::ifstream file("docs/dscow.md");
  std::string line, text;
  bool inside = false;
  while (std::getline(file, line)) {
    if (line == "```dump " + name)
      inside = true;
    else if (inside && line == "```")
      break;
    else if (inside)
      text += line + "\n";
  }
  return text;
}

TEST(DscowDocument, ShowsWhatCreateAndCommitWrite) {
  // A base of 1 GiB: at each MiB n a block of bytes n, between them zeroes.
  auto base = std::make_shared<SimDisk>("/dev/vg/base", kGiB, 512, false);
  for (uint64_t n = 0; n < kGiB / kMiB; n++) base->poke(n * kMiB, Bytes(4096, std::byte(n)));
  auto top = std::make_shared<SimDisk>("/dev/vg/cow", plan(2 * kGiB, 4096).needed(), 512, false);
  CreateRequest request = create_request(top, 2 * kGiB);
  request.base = base;
  run(create(request));
  EXPECT_EQ(documented("header"), hexdump(*top, 0, kBlock))
      << "create no longer writes what docs/dscow.md shows:\n"
      << hexdump(*top, 0, kBlock);
  World world(top, base);
  run(world.attach());
  run(world.promote(3, 2));
  run(world.promote(262144 + 32768 + 9));
  run(world.flush());
  const std::string bitmap = hexdump(*top, 2 * kBlock, world.geometry().data_offset - 2 * kBlock);
  EXPECT_EQ(documented("bitmap"), bitmap) << "a commit no longer writes what docs/dscow.md shows:\n"
                                          << bitmap;
}

}  // namespace
}  // namespace cowd::dscow
