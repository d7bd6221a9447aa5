// SPDX-License-Identifier: GPL-2.0-or-later
// What a VMDK says of itself, its kinds, what is refused, parents and their CIDs.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "formats/common/bytes.hh"
#include "formats/vmdk/vmdk.hh"
#include "tests/sim/files.hh"
#include "tests/sim/growing_world.hh"

namespace cowd::vmdk {
namespace {

using namespace cowd::sim;

constexpr uint64_t kMiB = 1 << 20;

GrowingFormat format() { return {"vmdk", true, create, open, check, room, {}}; }

std::shared_ptr<SimDisk> text_file(const std::string& text) {
  auto disk = std::make_shared<SimDisk>("disk.vmdk", round_up(text.size(), 512), 512, false);
  disk->poke(0, std::as_bytes(std::span(text.data(), text.size())));
  return disk;
}

std::string describe(const std::string& type, const std::string& lines,
                     const std::string& cid = "12345678") {
  return "# Disk DescriptorFile\nversion=1\nCID=" + cid + "\nparentCID=ffffffff\ncreateType=\"" +
         type + "\"\n\n# Extent description\n" + lines + "\n#DDB\n";
}

// An image whose files are in a table.
struct Opened {
  explicit Opened(std::shared_ptr<SimDisk> disk) : top(std::move(disk)) {}
  std::shared_ptr<SimDisk> top;
  Files files{"vmdk", open};

  OpenRequest request(bool read_only = true) {
    OpenRequest made;
    made.top = top;
    made.read_only = read_only;
    made.references = std::shared_ptr<References>(std::shared_ptr<void>(), &files);
    return made;
  }
  KernelModel::Open opener(bool read_only = true) {
    return [this, read_only](bool, KernelModel::Invalidate) -> Task<std::unique_ptr<Image>> {
      co_return co_await open(request(read_only));
    };
  }
  Bytes read() {
    KernelModel kernel(opener());
    run(kernel.attach());
    return run(kernel.read(0, kernel.image().sectors()));
  }
  CheckResult checked(bool repair = false) {
    CheckRequest made;
    made.top = top;
    made.repair = repair;
    made.references = request().references;
    return run(check(made));
  }
};

// What qemu-img makes of random data, in several files.
void read_as_qemu_makes_it(const std::string& subformat, bool writable) {
  SCOPED_TRACE(subformat);
  const Folder folder;
  Random random(3);
  Bytes raw(2 * kMiB + 512);
  for (int i = 0; i < 20; i++) raw[random() % raw.size()] = std::byte(1 + i);
  write_file(folder / "raw", raw);
  ASSERT_EQ(shell("qemu-img convert -f raw -O vmdk -o subformat=" + subformat + " " +
                  (folder / "raw") + " " + (folder / "disk.vmdk")),
            "");
  Opened image(load(folder / "disk.vmdk"));
  for (const char* part : {"disk-flat.vmdk", "disk-s001.vmdk", "disk-f001.vmdk"})
    if (std::filesystem::exists(folder / part)) image.files.disks[part] = load(folder / part);
  EXPECT_EQ(run(info(image.top))["type"], subformat);
  Bytes found = image.read();
  raw.resize(found.size());
  EXPECT_TRUE(found == raw);
  EXPECT_EQ(image.checked().errors, 0u);
  if (!writable) {
    const auto [code, sentence] = failure_of(open(image.request(false)));
    EXPECT_EQ(code, EOPNOTSUPP);
    EXPECT_NE(sentence.find("cannot be written to"), std::string::npos);
    return;
  }
  const std::string before = run(info(image.top))["cid"];
  KernelModel kernel(image.opener(false));
  run(kernel.attach());
  Guest guest(kernel, raw.size() / 512, raw);
  EXPECT_EQ(run(info(image.top))["cid"], before) << "nothing was written yet";
  run(guest.write({100, 50}));
  EXPECT_NE(run(info(image.top))["cid"], before);
  run(guest.zero({300, 50}));
  run(guest.flush());
  run(kernel.detach());
  EXPECT_TRUE(image.read() == guest.expected());
  for (const auto& [name, disk] : image.files.disks) save(*disk, folder / name);
  save(*image.top, folder / "disk.vmdk");
  ASSERT_EQ(
      shell("qemu-img convert -f vmdk -O raw " + (folder / "disk.vmdk") + " " + (folder / "again")),
      "");
  EXPECT_TRUE(read_file(folder / "again") == guest.expected());
}

TEST(VmdkFormat, KindsInSeveralFiles) {
  read_as_qemu_makes_it("monolithicFlat", true);
  read_as_qemu_makes_it("twoGbMaxExtentFlat", true);
  read_as_qemu_makes_it("twoGbMaxExtentSparse", true);
}

// An image made by us in a real folder.
std::shared_ptr<Opened> made(const std::string& subformat, uint64_t bytes, const Folder& folder) {
  auto image =
      std::make_shared<Opened>(std::make_shared<SimDisk>(folder / "disk.vmdk", 0, 512, false));
  CreateRequest request;
  request.top = image->top;
  request.size = bytes;
  request.options["subformat"] = subformat;
  request.references = image->request().references;
  run(create(request));
  for (const auto& [name, disk] : image->files.disks) save(*disk, folder / name);
  save(*image->top, folder / "disk.vmdk");
  return image;
}

TEST(VmdkFormat, KindsAreMadeAsQemuNamesThem) {
  for (const auto& [subformat, file, size] :
       {std::tuple("monolithicSparse", "disk.vmdk", 40 * kMiB),
        std::tuple("monolithicFlat", "disk-flat.vmdk", 3 * kMiB + 512),
        std::tuple("twoGbMaxExtentFlat", "disk-f001.vmdk", 3 * kMiB + 512),
        std::tuple("twoGbMaxExtentSparse", "disk-s003.vmdk", 5000 * kMiB)}) {
    SCOPED_TRACE(subformat);
    const Folder folder;
    const auto image = made(subformat, size, folder);
    EXPECT_TRUE(std::filesystem::exists(folder / file));
    EXPECT_EQ(image->files.disks.size(), size > 4096 * kMiB ? 3u : size == 40 * kMiB ? 0u : 1u);
    const std::string said = shell("qemu-img info --output=json " + (folder / "disk.vmdk"));
    EXPECT_NE(said.find("\"virtual-size\": " + std::to_string(size)), std::string::npos) << said;
    EXPECT_NE(said.find("\"create-type\": \"" + std::string(subformat)), std::string::npos);
    const std::string at = std::to_string(size - 65536);
    EXPECT_EQ(
        shell("qemu-io -f vmdk -c 'write -q -P 7 " + at + " 65536' " + (folder / "disk.vmdk")), "");
    for (auto& [name, disk] : image->files.disks) disk = load(folder / name);
    image->top = load(folder / "disk.vmdk");
    EXPECT_EQ(image->checked().errors, 0u);
    KernelModel kernel(image->opener());
    run(kernel.attach());
    EXPECT_EQ(kernel.image().sectors() * 512, size);
    EXPECT_EQ(run(kernel.read(size / 512 - 128, 128)), Bytes(65536, std::byte{7}));
  }
}

TEST(VmdkFormat, WhatIsThereIsNotOverwritten) {
  const Folder folder;
  const auto image = made("twoGbMaxExtentSparse", kMiB, folder);
  CreateRequest again;
  again.top = std::make_shared<SimDisk>("disk.vmdk", 0, 512, false);
  again.size = kMiB;
  again.options["subformat"] = "twoGbMaxExtentSparse";
  again.references = image->request().references;
  EXPECT_EQ(failure_of(create(again)).first, EEXIST);
  again.force = true;
  run(create(again));
  again.size = 100ULL << 30;
  EXPECT_NE(failure_of(create(again)).second.find("too many files"), std::string::npos);
  again.options["subformat"] = "twoGbMaxExtentOdd";
  EXPECT_NE(failure_of(create(again)).second.find("subformat"), std::string::npos);
}

TEST(VmdkFormat, EachExtentIsCutToWhatItUses) {
  const Folder folder;
  const auto image = made("twoGbMaxExtentSparse", 3000 * kMiB, folder);
  KernelModel kernel(image->opener(false));
  run(kernel.attach());
  for (const auto& [name, disk] : image->files.disks) EXPECT_GT(disk->size(), 800 * kMiB) << name;
  Guest guest(kernel, kernel.image().sectors());
  run(guest.write({0, 8}));
  run(guest.write({5000000, 200}));
  const auto opened = run(open(image->request(false)));
  EXPECT_TRUE(opened->used_lengths().empty());
  Image& used = kernel.image();
  run(guest.flush());
  run(used.close());
  const std::vector<Image::Length> lengths = used.used_lengths();
  ASSERT_EQ(lengths.size(), 2u);
  const uint64_t tables = image->files.disks["disk-s001.vmdk"]->size();
  for (const Image::Length& each : lengths) {
    EXPECT_LT(each.bytes, 2 * kMiB);
    EXPECT_GT(each.bytes, 65536u);
  }
  EXPECT_GT(tables, 2000 * kMiB);
}

// A table says where 32 MiB are.
TEST(VmdkFormat, ARunIsOneAnswer) {
  const Folder folder;
  const auto image = made("twoGbMaxExtentSparse", 40 * kMiB, folder);
  {
    KernelModel kernel(image->opener(false));
    run(kernel.attach());
    Guest guest(kernel, kernel.image().sectors());
    for (uint64_t at = 0; at < 40; at++) run(guest.write({at * 2048, 2048}));
    run(guest.flush());
    run(kernel.image().close());
    kernel.die();
  }
  const auto opened = run(open(image->request(false)));
  for (const Access access : {Access::read, Access::write, Access::read}) {
    const std::vector<Answer> answers = run(opened->resolve({16, 8}, access));
    ASSERT_EQ(answers.size(), 1u);
    const Range whole = range_of(answers[0]);
    EXPECT_EQ(whole.end(), opened->sectors());
  }
}

// ESX describes its disks so; the data is a file of its own.
TEST(VmdkFormat, ExtentsOfTheTypeVmfsAreFlat) {
  Opened image(text_file(describe("vmfs", "RW 64 VMFS \"d-flat.vmdk\"\n")));
  auto flat = std::make_shared<SimDisk>("d-flat.vmdk", 64 * 512, 512, true);
  image.files.disks["d-flat.vmdk"] = flat;
  const Bytes before = flat->peek(0, 64 * 512);
  EXPECT_TRUE(image.read() == before);
  KernelModel kernel(image.opener(false));
  run(kernel.attach());
  Guest guest(kernel, 64, before);
  run(guest.write({5, 3}));
  run(guest.flush());
  run(kernel.detach());
  EXPECT_TRUE(flat->peek(0, 64 * 512) == guest.expected());
  EXPECT_EQ(image.checked().errors, 0u);
}

// An extent that has more than the descriptor takes of it must not reach into the next.
TEST(VmdkFormat, AnExtentLongerThanItsLineEndsThere) {
  Opened image(
      text_file(describe("twoGbMaxExtentSparse", "RW 256 SPARSE \"a\"\nRW 128 FLAT \"b\" 0\n")));
  image.files.disks["a"] = make_image(format(), 8 * 65536);
  const auto flat = std::make_shared<SimDisk>("b", 65536, 512, true);
  image.files.disks["b"] = flat;
  Bytes expected(3 * 65536);
  const Bytes last = flat->peek(0, 65536);
  std::ranges::copy(last, expected.begin() + 2 * 65536);
  EXPECT_TRUE(image.read() == expected);
}

TEST(VmdkFormat, AStreamIsNotWrittenTo) { read_as_qemu_makes_it("streamOptimized", false); }

TEST(VmdkFormat, EsxExtentsAreRead) {
  // Grains of one sector; the directory at sector 4, one table at 5, a grain at 40.
  auto extent = std::make_shared<SimDisk>("d-delta.vmdk", 64 * 512, 512, false);
  Bytes bytes(64 * 512);
  const std::span<std::byte> out(bytes);
  store_le<uint32_t>(out, 0, 0x44574f43);
  store_le<uint32_t>(out, 4, 1);
  store_le<uint32_t>(out, 8, 3);
  store_le<uint32_t>(out, 12, 1024);
  store_le<uint32_t>(out, 16, 1);
  store_le<uint32_t>(out, 20, 4);
  store_le<uint32_t>(out, 24, 1);
  store_le<uint32_t>(out, 4 * 512, 5);
  store_le<uint32_t>(out, 5 * 512 + 7 * 4, 40);
  std::fill_n(bytes.begin() + 40 * 512, 512, std::byte{0x77});
  extent->poke(0, bytes);
  Opened image(text_file(describe("vmfsSparse", "RW 1024 VMFSSPARSE \"d-delta.vmdk\"\n")));
  image.files.disks["d-delta.vmdk"] = extent;
  Bytes expected(1024 * 512);
  std::fill_n(expected.begin() + 7 * 512, 512, std::byte{0x77});
  EXPECT_TRUE(image.read() == expected);
  EXPECT_EQ(image.checked().errors, 0u);
  EXPECT_EQ(image.checked().allocated_granules, 1u);
  EXPECT_EQ(failure_of(open(image.request(false))).first, EOPNOTSUPP);
}

TEST(VmdkFormat, AParentMustHaveItsCid) {
  Opened image(text_file(describe("monolithicFlat", "RW 64 FLAT \"b-flat.vmdk\" 0\n", "aabbccdd")));
  const auto base = image.top;
  auto flat = std::make_shared<SimDisk>("b-flat.vmdk", 64 * 512, 512, true);
  image.files.disks["b-flat.vmdk"] = flat;
  image.files.disks["base.vmdk"] = base;
  for (const std::string cid : {"aabbccdd", "aabbccde"}) {
    const auto child = make_image(format(), 65536);
    std::string text = describe("monolithicSparse", "RW 128 SPARSE \"x.vmdk\"\n");
    text.replace(text.find("ffffffff"), 8, cid);
    text += "parentFileNameHint=\"base.vmdk\"\n";
    text.resize(20 * 512);
    child->poke(512, std::as_bytes(std::span(text.data(), text.size())));
    image.top = child;
    if (cid != "aabbccdd") {
      const auto [code, sentence] = failure_of(open(image.request()));
      EXPECT_EQ(code, EINVAL);
      EXPECT_NE(sentence.find("aabbccdd"), std::string::npos);
      continue;
    }
    Bytes expected = flat->peek(0, 64 * 512);
    expected.resize(65536);  // the parent is shorter
    EXPECT_TRUE(image.read() == expected);
    give_room(format(), *child);
    KernelModel kernel(image.opener(false));
    run(kernel.attach());
    Guest guest(kernel, 128, expected);
    run(guest.write({3, 5}));
    run(guest.verify());
    run(kernel.detach());
    EXPECT_TRUE(image.read() == guest.expected());
    EXPECT_TRUE(flat->peek(0, 64 * 512) == Bytes(expected.begin(), expected.begin() + 64 * 512));
  }
}

TEST(VmdkFormat, ADifferentRedundantTableIsRepaired) {
  const auto top = make_image(format(), kMiB);
  Opened image(top);
  const uint64_t redundant = load_le<uint32_t>(top->peek(21 * 512, 4), 0);
  top->poke(redundant * 512 + 40, Bytes(4, std::byte{1}));
  EXPECT_EQ(image.checked().leaks, 1u);
  EXPECT_EQ(image.checked(true).leaks_fixed, 1u);
  EXPECT_EQ(image.checked().leaks, 0u);
}

// As check finds it, and as an attach for writing refuses it.
void expect_damaged(const std::shared_ptr<SimDisk>& top, const std::string& what) {
  SCOPED_TRACE(what);
  Opened image(top);
  EXPECT_GE(image.checked().errors, 1u);
  const auto [code, sentence] = failure_of(open(image.request(false)));
  EXPECT_EQ(code, EINVAL);
  EXPECT_NE(sentence.find("is damaged"), std::string::npos) << sentence;
}

void poke_le(SimDisk& disk, uint64_t at, uint32_t value) {
  Bytes bytes(4);
  store_le<uint32_t>(bytes, 0, value);
  disk.poke(at, bytes);
}

// Whatever the header says of its own length: a first write there would be the end of the image.
TEST(VmdkFormat, NothingLiesOnAnythingElse) {
  const auto whole = make_image(format(), 80 * kMiB);
  const uint64_t directory = load_le<uint64_t>(whole->peek(56, 8), 0) * 512;
  const uint32_t table = load_le<uint32_t>(whole->peek(directory, 4), 0);
  const auto changed = [&](uint64_t at, uint32_t value) {
    const auto top = whole->copy();
    top->set_size(4 * kMiB);
    poke_le(*top, 64, 0);  // the tables' length, "overhead", which is not believed
    poke_le(*top, at, value);
    return top;
  };
  Opened good(changed(64, 0));
  EXPECT_EQ(good.checked().errors, 0u);
  run(open(good.request(false)));
  expect_damaged(changed(table * 512, 2), "a grain on the descriptor");
  expect_damaged(changed(table * 512, static_cast<uint32_t>(directory / 512 - 1)),
                 "a grain that reaches into the directory");
  expect_damaged(changed(directory + 4, table), "a table twice");
  for (const uint32_t second : {1000u, 1024u, 1100u, 1127u}) {
    const auto top = changed(table * 512, 1000);
    poke_le(*top, table * 512 + 4, second);
    expect_damaged(top, "two grains on each other");
  }
  const auto odd = changed(table * 512, 1000);
  poke_le(*odd, table * 512 + 4, 1128);
  Opened beside(odd);
  EXPECT_EQ(beside.checked().errors, 0u);
  run(open(beside.request(false)));
}

// A directory full of entries that name one table would be gigabytes to read.
TEST(VmdkFormat, OneTableIsNotReadAgainAndAgain) {
  const auto top = make_image(format(), 8ULL << 30);
  const uint64_t directory = load_le<uint64_t>(top->peek(56, 8), 0) * 512;
  const uint32_t table = load_le<uint32_t>(top->peek(directory, 4), 0);
  for (uint64_t i = 0; i < 256; i++) poke_le(*top, directory + i * 4, table);
  top->reset_counts();
  expect_damaged(top, "one table for all");
  EXPECT_LT(top->counts().reads, 100u);
}

// On a disk with larger blocks the kernel can neither read nor write there.
// 96 tables of 2 KiB, in one file and in two, and room for eight.
TEST(VmdkFormat, MemoryIsBounded) {
  for (const std::string kind : {"monolithicSparse", "twoGbMaxExtentSparse"}) {
    const Folder folder;
    const auto image = made(kind, 3 * 1024 * kMiB, folder);
    OpenRequest request = image->request(true);
    request.metadata_cache = 16 << 10;
    const auto opened = run(open(request));
    run(opened->map({0, opened->sectors()}));
    EXPECT_EQ(opened->stats()["tables_cached"], 8) << kind;
    EXPECT_GE(opened->stats()["table_reads"], 96) << kind;
  }
}

TEST(VmdkFormat, GrainsBetweenLargeBlocksAreReadAsBytes) {
  const auto top = make_image(format(), kMiB, 4096);
  const uint64_t directory = load_le<uint64_t>(top->peek(56, 8), 0) * 512;
  const uint32_t table = load_le<uint32_t>(top->peek(directory, 4), 0);
  top->set_size(4 * kMiB);
  poke_le(*top, table * 512 + 4, 1027);
  const Bytes data(65536, std::byte{0x42});
  top->poke(1027 * 512, data);
  Bytes expected(kMiB);
  std::fill_n(expected.begin() + 65536, 65536, std::byte{0x42});
  Opened image(top);
  EXPECT_TRUE(image.read() == expected);
  EXPECT_EQ(failure_of(open(image.request(false))).first, EOPNOTSUPP);
}

TEST(VmdkFormat, DescriptorsThatCannotBeReadAreRefused) {
  for (const std::string& text :
       {describe("monolithicFlat", ""), describe("monolithicFlat", "RW 0 FLAT \"a\" 0\n"),
        describe("monolithicFlat", "RW 99999999999999999999 FLAT \"a\" 0\n"),
        describe("monolithicFlat", "RW 64 FLAT\n"),
        describe("monolithicFlat", "RW 64 WHAT \"a\"\n"),
        describe("fullDevice", "RW 64 FLAT \"/dev/sda\" 0\n"),
        describe("monolithicFlat", "NOACCESS 64 FLAT \"a\" 0\n"),
        describe("monolithicFlat", "RW 64 FLAT \"a\" 0\n", "xyz"),
        describe("monolithicFlat", "RW 6400 FLAT \"a\" 0\n"),
        std::string("# Disk DescriptorFile\nCID=1\n"), std::string("nothing at all")}) {
    Opened image(text_file(text));
    image.files.disks["a"] = std::make_shared<SimDisk>("a", 64 * 512);
    const auto [code, sentence] = failure_of(open(image.request()));
    EXPECT_EQ(code, EINVAL) << text << sentence;
    EXPECT_GE(image.checked().errors, 1u);
  }
  Opened missing(text_file(describe("monolithicFlat", "RW 64 FLAT \"b\" 0\n")));
  EXPECT_EQ(failure_of(open(missing.request())).first, ENOENT);
}

// Whatever the text, it is refused soon, with a sentence of what is wrong.
TEST(VmdkFormat, OddDescriptorsAreRefusedSoon) {
  const auto sentence_of = [](const std::string& text) {
    Opened image(text_file(text));
    image.files.disks["a"] = std::make_shared<SimDisk>("a", 64 * 512);
    const auto [code, sentence] = failure_of(open(image.request()));
    EXPECT_EQ(code, EINVAL) << text.substr(0, 200) << sentence;
    EXPECT_EQ(failure_of(open(image.request(false))).first, EINVAL);
    EXPECT_EQ(failure_of(info(image.top)).first == 0 || sentence.size() > 20, true);
    EXPECT_LT(sentence.size(), 400u);
    return sentence;
  };
  const auto of_lines = [&](const std::string& lines) {
    return sentence_of(describe("monolithicFlat", lines));
  };
  const auto has = [](const std::string& sentence, const std::string& words) {
    EXPECT_NE(sentence.find(words), std::string::npos) << sentence;
  };
  has(of_lines("RW -1 FLAT \"a\" 0\n"), "'-1', is no number of sectors");
  has(of_lines("RW 64 FLAT \"a\" -64\n"), "'-64', is no number of sectors");
  has(of_lines("RW 18446744073709551616 FLAT \"a\" 0\n"), "is no number of sectors");
  has(of_lines("RW 64 FLAT \"a\" 18446744073709551615\n"), "is no number of sectors");
  has(of_lines("RW 0x40 FLAT \"a\" 0\n"), "is no number of sectors");
  has(of_lines("RW 64 FLAT \"a 0\n"), "is no name in quotes");
  has(of_lines("RW 64 FLAT a 0\n"), "is no name in quotes");
  has(of_lines("RW 64 FLAT \"\" 0\n"), "is no name in quotes");
  has(of_lines("RW\t64\tFLAT\n"), "is not complete");
  has(of_lines("RW " + std::string(100000, '9') + " FLAT \"a\" 0\n"), "is no number");
  std::string many, large;
  for (int i = 0; i < 30000; i++) many += "RW 1 FLAT \"a\" 0\n";
  has(of_lines(many), "more than 4096 extents");
  for (int i = 0; i < 2; i++) large += "RW 18014398509481984 FLAT \"a\" 0\n";
  has(of_lines(large), "is no number of sectors");
  std::string some;
  for (int i = 0; i < 49; i++) some += "RW 1 FLAT \"a\" 0\n";
  has(of_lines(some), "up to 48 are served");
  std::string text = describe("monolithicFlat", "RW 64 FLAT \"a\" 0\n");
  has(sentence_of(text + std::string(2 << 20, '#')), "larger than 1 MiB");
  std::string quote = text;
  quote.erase(quote.find("Flat\"") + 4, 1);
  has(sentence_of(quote), "createType is has one quote");
  std::string cid = text;
  cid.replace(cid.find("12345678"), 8, "-1");
  has(sentence_of(cid), "CID=-1 is no number");
  cid.replace(cid.find("CID=-1"), 6, "CID=123456789");
  has(sentence_of(cid), "is no number");
  std::string version = text;
  version.replace(version.find("version=1"), 9, "version=99999999999999999999");
  has(sentence_of(version), "its version is");
  // One in a sparse file that says it is huge.
  const auto top = make_image(format(), kMiB);
  Bytes size(8);
  store_le<uint64_t>(std::span<std::byte>(size), 0, 1ULL << 55);
  top->poke(36, size);
  EXPECT_NE(failure_of(open(Opened(top).request())).second.find("1 MiB"), std::string::npos);
}

TEST(VmdkFormat, LinesMayEndAsInWindows) {
  std::string text = describe("monolithicFlat", "RW\t64 FLAT   \"a b\"  0  \n"), windows;
  for (const char c : text) windows += c == '\n' ? std::string("\r\n") : std::string(1, c);
  for (const std::string& each : {text, windows, windows.substr(0, windows.find("#DDB"))}) {
    Opened image(text_file(each));
    image.files.disks["a b"] = std::make_shared<SimDisk>("a b", 64 * 512);
    EXPECT_TRUE(image.read() == image.files.disks["a b"]->peek(0, 64 * 512));
    KernelModel kernel(image.opener(false));
    run(kernel.attach());
    run(Guest(kernel, 64).write({0, 1}));
    EXPECT_NE(run(info(image.top))["cid"], "12345678");
    run(kernel.detach());
  }
}

TEST(VmdkFormat, CreateRefusesWhatCannotBe) {
  for (const uint64_t size : {uint64_t{0}, uint64_t{65536 + 512}, uint64_t{4} << 40}) {
    CreateRequest wrong;
    wrong.top = std::make_shared<SimDisk>("image", 0, 512, false);
    wrong.size = size;
    EXPECT_EQ(failure_of(create(wrong)).first, EINVAL) << size;
  }
}

TEST(VmdkFormat, NothingFuzzedDoesMoreThanFail) {
  Random random(1);
  const auto whole = make_image(format(), kMiB);
  for (int i = 0; i < 100; i++) {
    Opened image(whole->copy());
    const uint64_t span = random() % 2 ? 80 : 40 * 512;
    for (int j = 0; j < 3; j++)
      image.top->poke(random() % span, Bytes(1 + random() % 8, std::byte(random())));
    try {
      const auto opened = run(open(image.request(random() % 2)));
      run(opened->map({0, std::min<uint64_t>(opened->sectors(), 4000)}));
    } catch (const Error&) {
    }
    image.checked(random() % 2);
  }
}

}  // namespace
}  // namespace cowd::vmdk
