// SPDX-License-Identifier: GPL-2.0-or-later
// qcow images under a guest: sequences, crashes, failures, and qemu-img's opinion.
#include <gtest/gtest.h>

#include <algorithm>

#include "formats/common/bytes.hh"
#include "formats/qcow/qcow.hh"
#include "formats/raw/raw.hh"
#include "tests/sim/growing_world.hh"

namespace cowd::qcow {
namespace {

using namespace cowd::sim;

constexpr uint64_t kMiB = 1 << 20;

GrowingFormat format() { return {"qcow", false, create, open, check, room, {}}; }

// On a backing file of another length.
GrowingFormat backed(uint64_t bytes, uint64_t beneath, const std::string& base_format = "raw") {
  GrowingFormat made = format();
  made.files = std::make_shared<Files>(
      std::map<std::string, Files::Opener>{{"raw", raw::open}, {"qcow", open}});
  Random random(beneath);
  made.beneath = some_content(beneath, random);
  if (base_format == "raw") {
    made.files->disks["base"] = std::make_shared<SimDisk>("base", beneath, 512, false);
    made.files->disks["base"]->poke(0, made.beneath);
  } else {
    const GrowingFormat base = format();
    Life life(base, make_image(base, beneath), 1);
    life.attach();
    Guest guest(life.kernel, beneath / 512);
    run(play(guest, life.kernel, random, {0, beneath / 512}, 12));
    run(guest.verify());
    life.detach();
    made.beneath = read_all(base, life.top);
    made.files->disks["base"] = life.top;
  }
  made.beneath.resize(bytes);
  made.options = {
      {"backing_file", "base"}, {"backing_fmt", base_format}, {"size", std::to_string(bytes)}};
  return made;
}

// With clusters of 512 bytes, which are qemu-img's on a backing file.
Task<> create_as_qemu(CreateRequest request) {
  const Folder folder;
  EXPECT_EQ(
      shell("cd " + (folder / "") + " && qemu-img create -q -u -f qcow -b base -F raw image " +
            request.options.at("size")),
      "");
  const Bytes bytes = read_file(folder / "image");
  co_await request.top->resize(round_up(bytes.size(), 512));
  Bytes padded = bytes;
  padded.resize(request.top->size());
  co_await request.top->write_at(0, padded);
}

GrowingFormat backed_as_qemu(uint64_t bytes, uint64_t beneath) {
  GrowingFormat made = backed(bytes, beneath);
  made.create = create_as_qemu;
  made.large = false;
  return made;
}

TEST(QcowImage, IsWhatTheGuestWrote) { test_sequences(format(), 5 * kMiB + 1024, 4); }

TEST(QcowImage, AnySequenceIsWhatQemuReads) {
  test_differential({{format()},
                     {.format = format(), .convert = ""},
                     {format()},
                     {.format = format(), .convert = "-c"}},
                    60);
}

TEST(QcowImage, SurvivesCrashes) { test_crashes(format(), kMiB / 2 + 512, 1, 12); }

TEST(QcowImage, SurvivesFailures) { test_faults(format(), kMiB + 512); }

TEST(QcowImage, IsNoLongerThanItMustBe) { test_length(format(), 5 * kMiB + 1024); }

TEST(QcowImage, ARunIsOneFault) { test_faults_of_a_full_image(format(), 20 * kMiB + 1024); }

TEST(QcowImage, HolesOfACrashAreUsedAgain) { test_holes(format(), kMiB); }

TEST(QcowImage, WhatIsPromotedWhileAnotherCowdBeginsCounts) { test_adopted(format(), kMiB); }

TEST(QcowImage, ACutBlockIsToldInParts) { test_told_in_parts(format(), kMiB + 1024); }

TEST(QcowImage, IsReadAndWrittenAsQemuMakesIt) {
  test_foreign(format(), "", 9 * kMiB, true);
  test_foreign(format(), "-c", 5 * kMiB, true);
}

// --- on a backing file ----------------------------------------------------------------------

TEST(QcowBacked, IsWhatTheGuestWrote) {
  test_sequences(backed(kMiB, kMiB), kMiB, 3);
  test_sequences(backed(kMiB, kMiB / 2 + 512 * 3), kMiB, 3);
  test_sequences(backed(kMiB + 4096, 2 * kMiB, "qcow"), kMiB + 4096, 3);
  test_sequences(backed_as_qemu(kMiB + 512, kMiB / 2 + 512), kMiB + 512, 2);
}

TEST(QcowBacked, AnySequenceIsWhatQemuReads) {
  const auto ours = [](uint64_t bytes, uint64_t beneath, const std::string& base_format) {
    return Variety{.format = backed(bytes, beneath, base_format), .least = bytes, .most = bytes};
  };
  const auto theirs = [](uint64_t beneath, const std::string& base_format) {
    const bool plain = base_format == "raw";
    return Variety{.format = backed(kMiB, beneath, base_format),
                   .convert = "",
                   .rebase = plain ? nullptr : rebase};
  };
  test_differential({ours(kMiB, kMiB, "raw"), theirs(kMiB / 2 + 512, "raw"),
                     ours(kMiB, kMiB / 2 + 512 * 5, "raw"), theirs(kMiB, "qcow"),
                     ours(kMiB / 2 + 4096, kMiB, "qcow"), theirs(2 * kMiB, "raw"),
                     ours(kMiB, kMiB / 4 + 512, "qcow")},
                    70);
}

TEST(QcowBacked, SurvivesCrashes) {
  constexpr uint64_t kBytes = kMiB / 2 + 512;
  test_crashes(backed(kBytes, kMiB / 4 + 512), kBytes, 1, 12);
  test_crashes(backed(kBytes, kMiB, "qcow"), kBytes, 1, 12);
  test_crashes(backed_as_qemu(kBytes, kMiB / 4 + 512), kBytes, 1, 12);
}

TEST(QcowBacked, SurvivesFailures) {
  test_faults(backed(kMiB + 512, kMiB / 2 + 512), kMiB + 512);
  test_faults(backed(kMiB + 512, kMiB / 2 + 512, "qcow"), kMiB + 512);
}

TEST(QcowBacked, IsNoLongerThanItMustBe) { test_length(backed(kMiB, kMiB), kMiB); }

TEST(QcowBacked, ARunIsOneFault) {
  test_faults_of_a_full_image(backed(5 * kMiB + 1024, kMiB), 5 * kMiB + 1024);
}

TEST(QcowBacked, HolesOfACrashAreUsedAgain) { test_holes(backed(kMiB, kMiB), kMiB); }

TEST(QcowBacked, WhatIsPromotedWhileAnotherCowdBeginsCounts) {
  test_adopted(backed(kMiB, kMiB), kMiB);
}

TEST(QcowBacked, ACutBlockIsToldInParts) {
  test_told_in_parts(backed(kMiB + 1024, 2 * kMiB), kMiB + 1024);
}

// One sector of a cluster: the others of it are in the top then, as they were beneath.
TEST(QcowBacked, AFirstWriteCopiesUpTheRestOfItsCluster) {
  const GrowingFormat made = backed(kMiB, kMiB);
  Life life(made, make_image(made, kMiB), 1);
  life.attach();
  Guest guest(life.kernel, kMiB / 512, made.beneath);
  run(guest.write({11, 1}));
  run(guest.verify());
  life.detach();
  made.files->disks["base"]->poke(0, Bytes(kMiB));
  const Bytes found = read_all(made, life.top);
  const auto at = [](uint64_t sector) { return static_cast<ptrdiff_t>(sector * 512); };
  EXPECT_TRUE(
      std::equal(found.begin() + at(8), found.begin() + at(16), guest.expected().begin() + at(8)));
  EXPECT_TRUE(std::all_of(found.begin() + at(16), found.end(),
                          [](std::byte each) { return each == std::byte{}; }));
}

// What is beneath begins and changes within the blocks of the device.
TEST(QcowBacked, IsWhatTheGuestWroteOnLargeBlocksOverSmallClusters) {
  GrowingFormat base = format();
  base.create = create_as_qemu;
  base.options = {{"size", std::to_string(kMiB / 2)}};
  const auto beneath = make_image(base, kMiB / 2);
  run(rebase({beneath, "", ""}));
  Life below(base, beneath, 1);
  below.attach();
  Guest writer(below.kernel, kMiB / 1024);
  for (uint64_t at = 0; at < kMiB / 1024; at += 5) run(writer.write({at, 1 + at % 4}));
  below.detach();

  GrowingFormat made = backed(kMiB, kMiB / 2, "qcow");
  made.files->disks["base"] = beneath;
  made.beneath = writer.expected();
  made.beneath.resize(kMiB);
  Life life(made, make_image(made, kMiB, 4096), 1);
  life.attach();
  Guest guest(life.kernel, kMiB / 512, made.beneath);
  run(guest.verify());
  Random random(1);
  run(play(guest, life.kernel, random, {0, kMiB / 512}, 40, 8));
  run(guest.verify());
  life.detach();
  EXPECT_EQ(check_of(made, life.top).errors, 0u);
}

// Smaller clusters than blocks, of what is beneath too: read-only it goes through cowd.
TEST(QcowBacked, SmallClustersOnLargeBlocksAreOnlyRead) {
  const GrowingFormat made = backed_as_qemu(kMiB, kMiB);
  const auto top = make_image(made, kMiB);
  const auto base = std::make_shared<SimDisk>("base", kMiB, 4096, false);
  base->poke(0, made.beneath);
  made.files->disks["base"] = base;
  EXPECT_TRUE(read_all(made, top) == made.beneath);
  give_room(made, *top);
  const auto [code, sentence] = failure_of(opener(made, top)(false, nullptr));
  EXPECT_EQ(code, EINVAL);
  EXPECT_NE(sentence.find("blocks of 4096"), std::string::npos) << sentence;
}

}  // namespace
}  // namespace cowd::qcow
