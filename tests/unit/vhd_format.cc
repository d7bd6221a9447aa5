// SPDX-License-Identifier: GPL-2.0-or-later
// What a VHD says of itself, what is refused, differencing images, and such as others made.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cowd/core/image_commit.hh"
#include "formats/vhd/footer.hh"
#include "formats/vhd/vhd.hh"
#include "tests/sim/files.hh"
#include "tests/sim/growing_world.hh"

namespace cowd::vhd {
namespace {

using namespace cowd::sim;

constexpr uint64_t kMiB = 1 << 20;

GrowingFormat format(const std::string& type = "dynamic") {
  return {"vpc", false, create, open, check, room, {{"type", type}, {"block", "64K"}}};
}

OpenRequest request(std::shared_ptr<Disk> top, bool read_only = true) {
  OpenRequest open_request;
  open_request.top = std::move(top);
  open_request.read_only = read_only;
  return open_request;
}

// The checksum of a structure that a test has changed.
void seal(SimDisk& disk, uint64_t offset, uint64_t bytes, size_t at) {
  Bytes all = disk.peek(offset, bytes);
  store_be<uint32_t>(all, at, 0);
  uint32_t sum = 0;
  for (const std::byte each : all) sum += std::to_integer<uint32_t>(each);
  store_be<uint32_t>(all, at, ~sum);
  disk.poke(offset, all);
}

template <typename T>
void put(SimDisk& disk, uint64_t offset, T value) {
  Bytes bytes(sizeof value);
  store_be<T>(bytes, 0, value);
  disk.poke(offset, bytes);
}

void put_entry(SimDisk& disk, uint64_t block, uint32_t sector) {
  put<uint32_t>(disk, kFooterBytes + kHeaderBytes + block * 4, sector);
}

TEST(VhdFormat, InfoSaysWhatItIs) {
  const auto top = make_image(format(), 5 * kMiB + 512);
  const nlohmann::json said = run(info(top));
  EXPECT_EQ(said["format"], "vhd");
  EXPECT_EQ(said["type"], "dynamic");
  EXPECT_EQ(said["virtual-size"], 5 * kMiB + 512);
  EXPECT_EQ(said["block-size"], 65536);
  EXPECT_EQ(said["blocks"], 81);
  EXPECT_EQ(said["blocks-allocated"], 0);
  EXPECT_EQ(run(info(make_image(format("fixed"), kMiB)))["type"], "fixed");
}

TEST(VhdFormat, GeometryIsThatOfTheSpecification) {
  EXPECT_EQ(geometry_of(40 * kMiB), 963u << 16 | 5 << 8 | 17);
  EXPECT_EQ(geometry_of(2040ULL << 30), 65535u << 16 | 16 << 8 | 255);
}

TEST(VhdFormat, CreateRefusesWhatCannotBe) {
  const auto failing = [](const std::string& name, const std::string& value, uint64_t size) {
    CreateRequest create_request;
    create_request.top = std::make_shared<SimDisk>("image", 0, 512, false);
    create_request.size = size;
    create_request.options[name] = value;
    return failure_of(create(create_request)).first;
  };
  EXPECT_EQ(failing("type", "differencing", kMiB), EINVAL);
  EXPECT_EQ(failing("block", "4K", kMiB), EINVAL);
  EXPECT_EQ(failing("block", "96K", kMiB), EINVAL);
  EXPECT_EQ(failing("colour", "red", kMiB), EINVAL);
  EXPECT_EQ(failing("type", "dynamic", 1000), EINVAL);
  EXPECT_EQ(failing("type", "dynamic", 0), EINVAL);
  EXPECT_EQ(failing("type", "dynamic", 3ULL << 40), EFBIG);
  CreateRequest again;
  again.top = make_image(format(), kMiB);
  again.size = kMiB;
  EXPECT_EQ(failure_of(create(again)).first, EEXIST);
  again.force = true;
  run(create(again));
}

TEST(VhdFormat, OpenRefusesWhatIsNotItsOwn) {
  const auto top = make_image(format(), kMiB);
  OpenRequest wrong = request(top);
  wrong.base = top;
  EXPECT_EQ(failure_of(open(wrong)).first, EINVAL);
  wrong = request(top);
  wrong.durability = Durability::transient;
  EXPECT_EQ(failure_of(open(wrong)).first, EINVAL);
  EXPECT_EQ(failure_of(open(request(std::make_shared<SimDisk>("d", kMiB)))).first, EINVAL);
  EXPECT_EQ(failure_of(open(request(std::make_shared<SimDisk>("d", 0)))).first, EINVAL);
  const auto image = run(open(request(top)));
  EXPECT_EQ(failure_of(image->resolve({0, 8}, Access::write)).first, EROFS);
  EXPECT_EQ(failure_of(image->resolve({2040, 16}, Access::read)).first, ERANGE);
}

// Each is a way to be damaged, or hostile; none may do more than fail with a sentence.
TEST(VhdFormat, DamagedHeadersAreRefused) {
  struct Damage {
    uint64_t offset;
    uint64_t value;
    size_t bytes;
  };
  const uint64_t header = kFooterBytes;
  for (const Damage& each : std::initializer_list<Damage>{
           {header, 0, 8},              // no magic
           {header + 16, ~0ULL, 8},     // the table is nowhere
           {header + 16, 7, 8},         // nor aligned
           {header + 16, 0, 8},         // on the footer's copy
           {header + 16, 1024, 8},      // on the header
           {header + 24, 0x20000, 4},   // version 2
           {header + 28, 3, 4},         // too few entries
           {header + 32, 0, 4},         // blocks of nothing
           {header + 32, 3 << 20, 4},   // no power of two
           {header + 32, 1u << 31, 4},  // too large
       }) {
    const auto top = make_image(format(), kMiB);
    Bytes bytes(each.bytes);
    for (size_t i = 0; i < each.bytes; i++)
      bytes[i] = std::byte(each.value >> 8 * (each.bytes - 1 - i));
    top->poke(each.offset, bytes);
    EXPECT_EQ(failure_of(open(request(top))).first, EINVAL) << "without its checksum";
    seal(*top, header, kHeaderBytes, 36);
    const auto [code, sentence] = failure_of(open(request(top)));
    EXPECT_EQ(code, EINVAL) << each.offset;
    EXPECT_NE(sentence.find("image"), std::string::npos);
    EXPECT_EQ(check_of(format(), top).errors, 1u);
  }
}

TEST(VhdFormat, BlocksWhereNoneCanBeAreToldAndNotWrittenTo) {
  const auto top = make_image(format(), kMiB);
  give_room(format(), *top);
  put_entry(*top, 2, 0xfffffff0);
  EXPECT_EQ(failure_of(open(request(top))).first, EINVAL);
  EXPECT_EQ(check_of(format(), top).errors, 1u);
  put_entry(*top, 2, 1);  // on the header
  EXPECT_EQ(check_of(format(), top).errors, 1u);
  run(open(request(top)));
  EXPECT_EQ(failure_of(open(request(top, false))).first, EINVAL);
  put_entry(*top, 2, 100);
  put_entry(*top, 5, 200);
  EXPECT_EQ(check_of(format(), top).errors, 1u);
  EXPECT_EQ(failure_of(open(request(top, false))).first, EINVAL);
}

TEST(VhdFormat, OneGoodFooterIsEnoughAndRepairsTheOther) {
  for (const bool end : {false, true}) {
    const auto top = make_image(format(), kMiB);
    top->poke(end ? top->size() - kFooterBytes : 0, Bytes(64));
    run(open(request(top)));
    EXPECT_EQ(check_of(format(), top).leaks, 1u);
    EXPECT_EQ(check_of(format(), top, true).leaks_fixed, 1u);
    EXPECT_EQ(check_of(format(), top).leaks, 0u);
    EXPECT_EQ(top->peek(0, 512), top->peek(top->size() - 512, 512));
  }
}

// Where only one counts, the other is not made useless: a file that grows has none at its end for a
// moment, and what is repaired lies on nothing.
TEST(VhdFormat, ForWritingTheCopyAtTheBeginningIsNeeded) {
  const auto expect_refused = [](const std::shared_ptr<SimDisk>& top) {
    run(open(request(top)));
    for (const auto& [code, sentence] :
         {failure_of(room(top)), failure_of(open(request(top, false)))}) {
      EXPECT_EQ(code, EINVAL);
      EXPECT_NE(sentence.find("cowctl check --repair"), std::string::npos) << sentence;
    }
    EXPECT_EQ(check_of(format(), top, true).leaks_fixed, 1u);
    give_room(format(), *top);
    run(open(request(top, false)));
  };
  const auto missing = make_image(format(), kMiB);
  missing->poke(0, Bytes(64));
  expect_refused(missing);
  const auto of_another_size = make_image(format(), kMiB);
  put<uint64_t>(*of_another_size, 48, kMiB / 2);
  seal(*of_another_size, 0, kFooterBytes, 64);
  expect_refused(of_another_size);
  const auto of_another_time = make_image(format(), kMiB);
  put<uint32_t>(*of_another_time, 24, 1);
  seal(*of_another_time, 0, kFooterBytes, 64);
  give_room(format(), *of_another_time);
  run(open(request(of_another_time, false)));
}

TEST(VhdFormat, NoFooterIsRepairedIntoTheHeaderOrTheTable) {
  const auto top = make_image(format(), kMiB);
  const Bytes header = top->peek(kFooterBytes, kHeaderBytes);
  top->poke(0, header);
  put<uint64_t>(*top, top->size() - kFooterBytes + 16, 0);
  seal(*top, top->size() - kFooterBytes, kFooterBytes, 64);
  EXPECT_EQ(check_of(format(), top, true).errors, 1u);
  EXPECT_EQ(top->peek(0, kHeaderBytes), header);

  const auto short_one = make_image(format(), kMiB);
  const uint64_t table = short_one->size() - 512;
  Bytes unused(512, std::byte{0xff});
  short_one->poke(table, unused);
  put<uint64_t>(*short_one, kFooterBytes + 16, table);
  put<uint32_t>(*short_one, kFooterBytes + 28, 1 << 20);  // entries: more than the file holds
  seal(*short_one, kFooterBytes, kHeaderBytes, 36);
  EXPECT_EQ(check_of(format(), short_one, true).errors, 1u);
  EXPECT_EQ(short_one->peek(table, 512), unused);
}

// The guest writes what it likes to the first sector of a fixed image.
TEST(VhdFormat, TheGuestOfAFixedImageCannotMakeItAnother) {
  const auto top = make_image(format("fixed"), kMiB);
  const auto dynamic = make_image(format(), kMiB);
  top->poke(0, dynamic->peek(0, 2048));
  EXPECT_EQ(run(info(top))["type"], "fixed");
  give_room(format("fixed"), *top);
  EXPECT_EQ(run(info(top))["type"], "fixed");
}

// As programs leave it that mark only the sectors that they have written.
TEST(VhdFormat, SectorsWithoutTheirBitAreZeroesAndBecomeWhole) {
  const auto top = make_image(format(), kMiB);
  give_room(format(), *top);
  put_entry(*top, 1, 64);
  Bytes bitmap(512);
  bitmap[0] = std::byte{0x60};  // sectors 1 and 2
  top->poke(64 * 512, bitmap);
  Bytes data(65536, std::byte{0x55});
  top->poke(65 * 512, data);
  Bytes expected(kMiB);
  std::fill_n(expected.begin() + 65536 + 512, 1024, std::byte{0x55});
  EXPECT_TRUE(read_all(format(), top) == expected);
  KernelModel kernel(opener(format(), top));
  run(kernel.attach());
  Guest guest(kernel, kMiB / 512, expected);
  run(guest.write({130, 1}));
  run(guest.verify());
  run(guest.flush());
  kernel.die();
  KernelModel after(opener(format(), top));
  guest.use(after);
  run(after.attach());
  run(guest.verify());
  EXPECT_EQ(top->peek(64 * 512, 16), Bytes(16, std::byte{0xff}));
}

// A child with one block, half of whose sectors are its own.
std::shared_ptr<SimDisk> make_child(const Uuid& parent) {
  const auto child = make_image(format(), kMiB);
  child->set_size(kMiB);
  put<uint32_t>(*child, 60, 4);
  seal(*child, 0, 512, 64);
  child->poke(kFooterBytes + 40, parent);
  const std::u16string path = u".\\base.vhd";
  Bytes text;
  for (const char16_t c : path) {
    text.push_back(std::byte(c & 0xff));
    text.push_back(std::byte(c >> 8));
  }
  child->poke(200 * 512, text);
  const uint64_t locator = kFooterBytes + 576 + 2 * 24;
  put<uint32_t>(*child, locator, kRelativePath);
  put<uint32_t>(*child, locator + 4, 512);
  put<uint32_t>(*child, locator + 8, static_cast<uint32_t>(text.size()));
  put<uint64_t>(*child, locator + 16, 200 * 512);
  seal(*child, kFooterBytes, kHeaderBytes, 36);
  put_entry(*child, 0, 300);
  Bytes bitmap(512);
  std::fill_n(bitmap.begin(), 8, std::byte{0xff});
  child->poke(300 * 512, bitmap);
  child->poke(301 * 512, Bytes(65536, std::byte{0xcc}));
  return child;
}

TEST(VhdFormat, DifferencingImagesAreReadThroughTheirParent) {
  Files files("vhd", open);
  const auto base = make_image(format("fixed"), kMiB);
  base->poke(0, Bytes(kMiB, std::byte{0xbb}));
  files.disks["base.vhd"] = base;
  Uuid uuid{};
  const Bytes footer = base->peek(kMiB, 512);
  std::copy_n(footer.begin() + 68, 16, uuid.begin());
  const auto child = make_child(uuid);
  OpenRequest open_child = request(child);
  open_child.references = std::shared_ptr<References>(std::shared_ptr<void>(), &files);
  EXPECT_EQ(run(info(child))["base"], "base.vhd");
  const auto open_it = [=](bool, KernelModel::Invalidate) -> Task<std::unique_ptr<Image>> {
    co_return co_await open(open_child);
  };
  KernelModel kernel(open_it);
  run(kernel.attach());
  const Bytes found = run(kernel.read(0, kMiB / 512));
  Bytes expected(kMiB, std::byte{0xbb});
  std::fill_n(expected.begin(), 64 * 512, std::byte{0xcc});
  EXPECT_TRUE(found == expected);
  const std::vector<MapEntry> map = run(kernel.image().map({0, kMiB / 512}));
  EXPECT_EQ(map.at(0).depth, 0);
  EXPECT_EQ(map.at(0).range, (Range{0, 64}));
  EXPECT_EQ(map.at(1).depth, 1);
  run(kernel.detach());

  // A write makes its block whole: what it had not comes from the parent.
  give_room(format("differencing"), *child);
  OpenRequest writable = open_child;
  writable.read_only = false;
  const auto write_it = [=](bool, KernelModel::Invalidate) -> Task<std::unique_ptr<Image>> {
    co_return co_await open(writable);
  };
  KernelModel writer(write_it);
  run(writer.attach());
  Guest guest(writer, kMiB / 512, expected);
  run(guest.write({100, 1}));
  run(guest.write({1000, 1}));
  run(guest.verify());
  run(writer.detach());
  EXPECT_EQ(child->peek(300 * 512, 16), Bytes(16, std::byte{0xff}));
  EXPECT_EQ(base->peek(0, kMiB), Bytes(kMiB, std::byte{0xbb}));
  EXPECT_EQ(failure_of(open(request(child))).first, EINVAL);  // without references
  uuid[0] ^= std::byte{1};
  OpenRequest stranger = request(make_child(uuid));
  stranger.references = open_child.references;
  EXPECT_EQ(failure_of(open(stranger)).first, EINVAL);
}

// What is beneath while it is committed is only stood in for.
class StandIns : public Files {
 public:
  using Files::Files;
  Task<std::unique_ptr<Image>> image(const Disk& from, std::string path,
                                     std::string format) override {
    const std::unique_ptr<Image> real = co_await Files::image(from, path, format);
    std::unique_ptr<Image> stand_in = stand_in_for(*real);
    co_return stand_in;
  }
};

// The parent keeps its unique id, so that the child still knows it.
TEST(VhdFormat, ADifferencingImageIsCommittedToItsParent) {
  StandIns files("vhd", open);
  const auto base = make_image(format(), kMiB);
  files.disks["base.vhd"] = base;
  Uuid uuid{};
  const Bytes footer = base->peek(0, 512);
  std::copy_n(footer.begin() + 68, 16, uuid.begin());
  OpenRequest open_child = request(make_child(uuid));
  open_child.references = std::shared_ptr<References>(std::shared_ptr<void>(), &files);
  FormatDescriptor vhd;
  CommitPlan plan;
  plan.format = &vhd;
  plan.request.top = open_child.top;
  plan.top = run(open(open_child));
  plan.base_disk = base;
  plan.open_base = [base] {
    give_room(format(), *base);
    return open(request(base, false));
  };
  run(commit_image(std::move(plan)));
  Bytes expected(kMiB);
  std::fill_n(expected.begin(), 64 * 512, std::byte{0xcc});
  EXPECT_TRUE(read_all(format(), base) == expected);
  Bytes theirs = raw_by_others(format(), *base);
  theirs.resize(expected.size());
  EXPECT_TRUE(theirs == expected);
  EXPECT_EQ(failure_of(open(open_child)).first, 0);
}

CreateRequest child_request(const std::shared_ptr<Files>& files, const std::string& parent) {
  CreateRequest made;
  made.top = std::make_shared<SimDisk>("child.vhd", 0, 512, false);
  made.options = {{"type", "differencing"}};
  if (!parent.empty()) made.options["parent"] = parent;
  made.references = files;
  return made;
}

TEST(VhdFormat, AChildSaysWhatItsParentIs) {
  const auto files = std::make_shared<Files>("vhd", open);
  const std::string name = "B\xc3\xa4se \xf0\x9f\x90\x9f.vhd";
  files->disks["below/" + name] = make_image(format("fixed"), 3 * kMiB);
  const CreateRequest made = child_request(files, "below/" + name);
  run(create(made));
  const nlohmann::json said = run(info(made.top));
  EXPECT_EQ(said["type"], "differencing");
  EXPECT_EQ(said["virtual-size"], 3 * kMiB);
  EXPECT_EQ(said["base"], "below/" + name);
  EXPECT_EQ(said["base-uuid"], run(info(files->disks["below/" + name]))["uuid"]);
  // As Windows reads it: the name, and a path with its own slashes.
  const Header header = run(read_header(*made.top, run(read_footers(*made.top)).current));
  EXPECT_EQ(header.parent_name, name);
  EXPECT_GT(header.parent_time, 0u);
  EXPECT_EQ(header.locators[0].platform, kRelativePath);
  EXPECT_EQ(header.locators[0].space, 512u);
  const Bytes path = std::static_pointer_cast<SimDisk>(made.top)->peek(header.locators[0].offset,
                                                                       header.locators[0].length);
  EXPECT_EQ(utf8(path, false), ".\\below\\" + name);
}

TEST(VhdFormat, AChildWithoutItsParentIsNotMade) {
  const auto files = std::make_shared<Files>("vhd", open);
  files->disks["base.vhd"] = make_image(format(), kMiB);
  const auto why = [](const CreateRequest& made) {
    const auto [code, sentence] = failure_of(create(made));
    EXPECT_NE(code, 0);
    return sentence;
  };
  const auto has = [](const std::string& sentence, const std::string& words) {
    EXPECT_NE(sentence.find(words), std::string::npos) << sentence;
  };
  has(why(child_request(files, "")), "say parent=FILE");
  has(why(child_request(files, "/srv/base.vhd")), "absolute path");
  has(why(child_request(files, "other.vhd")), "is not there");
  has(why(child_request(nullptr, "base.vhd")), "not opened here");
  CreateRequest larger = child_request(files, "base.vhd");
  larger.size = 2 * kMiB;
  has(why(larger), "the size of its parent");
  CreateRequest stray = child_request(files, "base.vhd");
  stray.options["type"] = "dynamic";
  stray.size = kMiB;
  has(why(stray), "parent");
}

TEST(VhdFormat, Utf16IsWhatItShouldBe) {
  EXPECT_EQ(utf16("a\xc3\xa4\xe2\x82\xac", true),
            (Buffer{std::byte{0}, std::byte{'a'}, std::byte{0}, std::byte{0xe4}, std::byte{0x20},
                    std::byte{0xac}}));
  EXPECT_EQ(utf8(utf16("\xf0\x9f\x90\x9f", false).value(), false), "\xf0\x9f\x90\x9f");
  for (const char* bad : {"\x80", "\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xff"})
    EXPECT_FALSE(utf16(bad, true)) << bad;
  EXPECT_FALSE(utf16(std::string_view("a\0b", 3), true));
}

// Data that others made begins at any sector: on a disk with larger blocks it cannot be mapped.
TEST(VhdFormat, OnLargeBlocksWhatIsAtOddSectorsIsReadAsBytes) {
  const Folder folder;
  Random random(5);
  Bytes raw(3 * kMiB);
  for (int i = 0; i < 40; i++) raw[random() % raw.size()] = std::byte(1 + i);
  write_file(folder / "raw", raw);
  ASSERT_EQ(shell("qemu-img convert -f raw -O vpc -o subformat=dynamic,force_size=on " +
                  (folder / "raw") + " " + (folder / "disk.vhd")),
            "");
  const auto top = load(folder / "disk.vhd", 4096);
  EXPECT_EQ(failure_of(open(request(top, false))).first, EINVAL);
  KernelModel kernel(opener(format(), top, Durability::flush, true));
  run(kernel.attach());
  Bytes found = run(kernel.read(0, raw.size() / 512));
  EXPECT_TRUE(found == raw);
  EXPECT_GT(kernel.data_answers(), 0u);
}

// A block of the disk of which some sectors were never written is no extent: it goes as bytes.
TEST(VhdFormat, OnLargeBlocksPartsOfOneAreReadAsBytes) {
  const auto top = make_image(format(), kMiB, 4096);
  give_room(format(), *top);
  put_entry(*top, 1, 63);
  Bytes bitmap(512), expected(kMiB);
  bitmap[0] = std::byte{0x60};                          // sectors 1 and 2
  bitmap[1] = bitmap[2] = bitmap[3] = std::byte{0xff};  // 8 to 31
  bitmap[4] = std::byte{0xe0};                          // 32 to 34
  top->poke(63 * 512, bitmap);
  top->poke(64 * 512, Bytes(65536, std::byte{0x55}));
  std::fill_n(expected.begin() + 65536 + 512, 1024, std::byte{0x55});
  std::fill_n(expected.begin() + 65536 + 4096, 27 * 512, std::byte{0x55});
  for (const bool read_only : {true, false}) {
    KernelModel kernel(opener(format(), top->copy(), Durability::flush, read_only));
    run(kernel.attach());
    EXPECT_TRUE(run(kernel.read(0, expected.size() / 512)) == expected);
    EXPECT_EQ(kernel.data_answers(), 2u);
    for (uint64_t at = 0; at < expected.size() / 512; at += 8)
      EXPECT_TRUE(run(kernel.read(at, 8)) ==
                  Bytes(expected.begin() + static_cast<ptrdiff_t>(at * 512),
                        expected.begin() + static_cast<ptrdiff_t>(at * 512 + 4096)));
    run(kernel.detach());
  }
}

TEST(VhdFormat, NothingFuzzedDoesMoreThanFail) {
  Random random(1);
  const auto whole = make_image(format(), kMiB);
  for (int i = 0; i < 100; i++) {
    const auto top = whole->copy();
    for (int j = 0; j < 3; j++)
      top->poke(random() % 2048, Bytes(1 + random() % 8, std::byte(random())));
    seal(*top, kFooterBytes, kHeaderBytes, 36);
    if (random() % 2) top->poke(top->size() - 512, top->peek(0, 512));
    try {
      const auto image = run(open(request(top)));
      run(image->map({0, std::min<uint64_t>(image->sectors(), 4000)}));
    } catch (const Error&) {
    }
    check_of(format(), top, random() % 2);
  }
}

}  // namespace
}  // namespace cowd::vhd
