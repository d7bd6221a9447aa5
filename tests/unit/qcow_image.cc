// SPDX-License-Identifier: GPL-2.0-or-later
// qcow images under a guest: sequences, crashes, failures, and qemu-img's opinion.
#include <gtest/gtest.h>

#include "formats/qcow/qcow.hh"
#include "tests/sim/growing_world.hh"

namespace cowd::qcow {
namespace {

using namespace cowd::sim;

constexpr uint64_t kMiB = 1 << 20;

GrowingFormat format() { return {"qcow", false, create, open, check, room, {}}; }

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

}  // namespace
}  // namespace cowd::qcow
