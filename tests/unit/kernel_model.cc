// SPDX-License-Identifier: GPL-2.0-or-later
// The model of the kernel itself, over formats that are known: raw and dscow.
#include "tests/sim/kernel_model.hh"

#include <gtest/gtest.h>

#include "formats/raw/raw.hh"
#include "tests/sim/dscow_world.hh"

namespace cowd::sim {
namespace {

KernelModel::Open opener(std::shared_ptr<Disk> top, std::shared_ptr<Disk> base,
                         Durability durability = Durability::flush, std::string boot = "boot-1") {
  return [=](bool reattach, KernelModel::Invalidate invalidate) -> Task<std::unique_ptr<Image>> {
    OpenRequest request = dscow_request(top, base, boot);
    request.reattach = reattach;
    request.durability = durability;
    request.invalidate = invalidate;
    co_return co_await dscow::open(std::move(request));
  };
}

std::vector<std::byte> content(SimDisk& disk) { return disk.peek(0, disk.size()); }

Task<> play(Guest& guest, KernelModel& kernel, Random& random, Range part, int steps) {
  for (int i = 0; i < steps; i++) {
    const uint64_t sector = part.sector + random() % part.len;
    const Range range{sector, 1 + random() % std::min<uint64_t>(part.end() - sector, 100)};
    switch (random() % 12) {
      case 0: co_await guest.flush(); break;
      case 1: co_await kernel.timer(); break;
      case 2: kernel.forget(); break;
      case 3: co_await guest.zero(range); break;
      case 4: co_await guest.discard(range); break;
      case 5: co_await guest.verify(range); break;
      default: co_await guest.write(range);
    }
  }
}

TEST(KernelModel, ReadsWhatWasWrittenOverDscow) {
  for (uint64_t seed = 1; seed <= 20; seed++) {
    SCOPED_TRACE(seed);
    const auto base = make_base(kMiB + 512);
    const auto top = make_store(2 * kMiB + 1024, base);
    const Durability durability = seed % 3 ? Durability::flush : Durability::always;
    KernelModel kernel(opener(top, base, durability), seed);
    Random random(seed);
    run(kernel.attach());
    Guest guest(kernel, kernel.image().sectors(), content(*base));
    run(play(guest, kernel, random, {0, guest.sectors()}, 60));
    run(kernel.reattach());
    run(guest.verify());
    top->delay(seed, 5);
    std::vector<Task<>> tasks;
    for (uint64_t i = 0; i < 4; i++)
      tasks.push_back(play(guest, kernel, random, {i * 1000, 1000}, 30));
    run_all(std::move(tasks));
    run(guest.verify());
    run(kernel.detach());
    run(kernel.attach());
    run(guest.verify());
    EXPECT_GT(kernel.copied(), 0u);
  }
}

TEST(KernelModel, JudgesCrashes) {
  const auto top = make_store(kMiB);
  KernelModel kernel(opener(top, nullptr));
  run(kernel.attach());
  Guest guest(kernel, kernel.image().sectors());
  top->record();
  guest.mark_in(*top);
  Random random(5);
  run(play(guest, kernel, random, {0, guest.sectors()}, 40));
  run(guest.flush());
  uint64_t mark = 0;
  const auto judge = [&](std::shared_ptr<SimDisk> found, uint64_t wanted) {
    KernelModel after(opener(found, nullptr, Durability::flush, "after the crash"));
    run(after.attach());
    run(guest.verify_crash(after, wanted));
  };
  for (size_t at = 0; at <= top->log().size(); at += 7) {
    for (size_t i = at < 7 ? 0 : at - 7; i < at; i++)
      if (top->log()[i].kind == Event::Kind::mark) mark = top->log()[i].id;
    judge(top->crash(at, Survives::anything, random), mark);
  }
  // A disk that forgot everything is found out.
  EXPECT_THROW(judge(top->crash(0, Survives::nothing, random), guest.marks()), std::logic_error);
}

TEST(KernelModel, WritesThroughToARawDisk) {
  const auto disk = std::make_shared<SimDisk>("disk", kMiB);
  const auto open = [&](bool, KernelModel::Invalidate) -> Task<std::unique_ptr<Image>> {
    OpenRequest request;
    request.top = disk;
    co_return co_await raw::open(std::move(request));
  };
  KernelModel kernel(open);
  run(kernel.attach());
  Guest guest(kernel, kMiB / 512, content(*disk));
  run(guest.write({7, 100}));
  run(guest.discard({300, 5}));
  run(guest.verify());
  EXPECT_EQ(kernel.faults(), 0u);
  run(kernel.detach());
}

}  // namespace
}  // namespace cowd::sim
