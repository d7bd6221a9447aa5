// SPDX-License-Identifier: GPL-2.0-or-later
// VMDK images under a guest: sequences, crashes, failures, and qemu-img's opinion.
#include <gtest/gtest.h>

#include <array>

#include "formats/vmdk/vmdk.hh"
#include "tests/sim/growing_world.hh"

namespace cowd::vmdk {
namespace {

using namespace cowd::sim;

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kGrain = 128;  // sectors

GrowingFormat format() { return {"vmdk", true, create, open, check, room, {}}; }

// Of four extents, one of them flat: as large ones are, but that those of 2 GB are too long here.
Task<> create_split(CreateRequest request) {
  const uint64_t sectors = request.size / 512;
  const std::array<uint64_t, 4> parts{3 * kGrain, kGrain, 2 * kGrain, sectors - 6 * kGrain};
  std::string text =
      "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
      "createType=\"twoGbMaxExtentSparse\"\n\n# Extent description\n";
  for (size_t i = 0; i < parts.size(); i++) {
    const std::string name = "image-s00" + std::to_string(i + 1);
    CreateRequest part;
    part.top = co_await request.references->make(*request.top, name, request.force);
    part.size = parts[i] * 512;
    const bool flat = i == 1;
    if (flat)
      co_await part.top->resize(part.size);
    else
      co_await create(part);
    text += "RW " + std::to_string(parts[i]) + (flat ? " FLAT \"" : " SPARSE \"") + name +
            (flat ? "\" 0\n" : "\"\n");
  }
  text.resize(4096, '\n');
  co_await request.top->resize(text.size());
  const auto bytes = std::as_bytes(std::span(text));
  co_await request.top->write_at(0, bytes);
}

GrowingFormat split() {
  GrowingFormat made{"vmdk", true, create_split, open, check, room, {}};
  made.files = std::make_shared<Files>("vmdk", open);
  return made;
}

TEST(VmdkImage, IsWhatTheGuestWrote) { test_sequences(format(), 3 * kMiB + 65536, 4); }

TEST(VmdkImage, IsWhatTheGuestWroteInSeveralFiles) { test_sequences(split(), kMiB + 65536, 3); }

TEST(VmdkImage, AnySequenceIsWhatQemuReads) {
  const auto theirs = [](const GrowingFormat& made, const std::string& options) {
    return Variety{.format = made, .unit = kGrain * 512, .convert = "-o " + options};
  };
  test_differential({{.format = format(), .unit = kGrain * 512},
                     theirs(format(), "subformat=monolithicSparse"),
                     {.format = split(), .unit = kGrain * 512, .least = 7 * kGrain * 512},
                     theirs(format(), "zeroed_grain=on"),
                     {.format = format(), .unit = kGrain * 512, .most = 3 * kMiB},
                     theirs(split(), "subformat=twoGbMaxExtentSparse"),
                     {.format = format(), .unit = kGrain * 512},
                     theirs(split(), "subformat=monolithicFlat")},
                    80);
}

TEST(VmdkImage, SurvivesCrashes) { test_crashes(format(), kMiB / 2, 1, 12); }

TEST(VmdkImage, SurvivesCrashesInSeveralFiles) { test_crashes(split(), kMiB / 2, 1, 12); }

TEST(VmdkImage, SurvivesFailures) { test_faults(format(), kMiB); }

TEST(VmdkImage, SurvivesFailuresInSeveralFiles) { test_faults(split(), kMiB); }

TEST(VmdkImage, IsNoLongerThanItMustBe) {
  test_length(format(), 3 * kMiB);
  test_length(split(), 3 * kMiB);
}

TEST(VmdkImage, ARunIsOneFault) {
  test_faults_of_a_full_image(format(), 40 * kMiB);
  test_faults_of_a_full_image(split(), 3 * kMiB);
}

TEST(VmdkImage, HolesOfACrashAreUsedAgain) { test_holes(format(), kMiB); }

TEST(VmdkImage, HolesOfACrashAreUsedAgainInSeveralFiles) { test_holes(split(), kMiB); }

TEST(VmdkImage, WhatIsPromotedWhileAnotherCowdBeginsCounts) { test_adopted(split(), kMiB); }

TEST(VmdkImage, IsReadAndWrittenAsQemuMakesIt) {
  test_foreign(format(), "-o subformat=monolithicSparse", 40 * kMiB, true);
  test_foreign(format(), "-o subformat=monolithicSparse", 5 * kMiB + 1024, true);
}

TEST(VmdkImage, IsReadIfItIsAStream) {
  test_foreign(format(), "-o subformat=streamOptimized", 9 * kMiB, false);
}

}  // namespace
}  // namespace cowd::vmdk
