// SPDX-License-Identifier: GPL-2.0-or-later
// Snapshots and sizes of images that nobody serves. Whatever is done to an image in whatever order:
// it has no errors and no leaks, also in the eyes of qemu-img, and the disk and each of its
// snapshots have the bytes that they should. The same after a power cut at any moment
// and after each operation that may fail: then it is as it was, or as it was to be.
#include <gtest/gtest.h>

#include <algorithm>

#include "formats/common/bytes.hh"
#include "formats/qcow2/snapshot_table.hh"
#include "tests/sim/qcow2_world.hh"

namespace cowd::qcow2 {
namespace {

using namespace cowd::sim;

using Action = SnapshotRequest::Action;
using Disks = std::shared_ptr<SimDisk>;

Task<> take(Disks top, Action action, std::string name) {
  SnapshotRequest request;
  request.top = std::move(top);
  request.action = action;
  request.name = std::move(name);
  co_await snapshot(std::move(request));
}

Task<> size_to(Disks top, uint64_t size, std::shared_ptr<References> references = nullptr) {
  ResizeRequest request;
  request.top = std::move(top);
  request.size = size;
  request.references = std::move(references);
  co_await resize(std::move(request));
}

void expect_sound(const Disks& disk, bool ask_qemu = true) {
  const CheckResult result = check_qcow2(disk);
  ASSERT_EQ(result.errors + result.leaks, 0u) << result.findings.at(0);
  if (!ask_qemu) return;
  std::string output;
  ASSERT_EQ(qemu_check(*disk, &output), 0) << output;
}

// An image, what is known to be in it, and what may be done to it.
class Life {
 public:
  Life(const Shape& shape, uint64_t seed) : shape_(shape), world_(shape, seed), random_(seed) {
    run(world_.play(whole(), 12));
    bytes_ = run(world_.kernel->read(0, shape.size / 512));
    run(world_.kernel->detach());
  }

  void step() {
    switch (random_() % 6) {
      case 0: return guest();
      case 1: return create();
      case 2: return choose(Action::apply);
      case 3: return choose(Action::remove);
      default: return change_size();
    }
  }

  void guest() {
    make_room(world_.top);
    const auto references = world_.references;
    world_.kernel = std::make_unique<KernelModel>(qcow2_opener(world_.top, references), random_());
    run(world_.kernel->attach());
    const uint64_t sectors = bytes_.size() / 512;
    world_.guest = std::make_unique<Guest>(*world_.kernel, sectors, bytes_);
    run(world_.guest->verify());
    run(world_.play(whole(), 10));
    bytes_ = run(world_.kernel->read(0, sectors));
    run(world_.kernel->detach());
  }

  void create() {
    const std::string name = "s" + std::to_string(++made_);
    run(take(world_.top, Action::create, name));
    kept_[name] = bytes_;
  }

  void choose(Action action) {
    if (kept_.empty()) return create();
    auto at = kept_.begin();
    std::advance(at, static_cast<ptrdiff_t>(random_() % kept_.size()));
    run(take(world_.top, action, at->first));
    if (action == Action::apply)
      bytes_ = at->second;
    else
      kept_.erase(at);
  }

  void change_size() {
    const uint64_t unit = random_() % 2 ? 512 : 64 * kKiB;
    const uint64_t size = round_up(1 + random_() % (2 * shape_.size), unit);
    const int code = failure_of(size_to(world_.top, size, world_.references)).first;
    const Header header = run(read_header(*world_.top));
    const bool old = header.version == 2;
    const bool covered = old && size > bytes_.size() && shape_.base > bytes_.size();
    const bool refused = (old && !kept_.empty()) || covered;
    ASSERT_EQ(code, refused ? ENOTSUP : 0);
    if (!refused) bytes_.resize(size);
    EXPECT_EQ(header.size, bytes_.size());
  }

  void verify(bool ask_qemu) {
    ASSERT_NO_FATAL_FAILURE(expect_sound(world_.top, ask_qemu));
    ASSERT_TRUE(image_bytes(world_.top, world_.references) == bytes_);
    const std::vector<Snapshot> list = run(snapshots(world_.top));
    ASSERT_EQ(list.size(), kept_.size());
    for (const Snapshot& each : list)
      EXPECT_EQ(each.disk_bytes, kept_.at(each.name).size()) << each.name;
  }

  // Each snapshot has what it had.
  void verify_snapshots() {
    for (const auto& [name, bytes] : kept_) {
      const auto copy = world_.top->copy();
      run(take(copy, Action::apply, name));
      ASSERT_NO_FATAL_FAILURE(expect_sound(copy, false));
      ASSERT_TRUE(image_bytes(copy, world_.references) == bytes) << name;
    }
  }

  Disks disk() const { return world_.top; }
  std::shared_ptr<References> references() const { return world_.references; }
  const Bytes& bytes() const { return bytes_; }
  uint64_t cluster() { return run(read_header(*world_.top)).cluster(); }

 private:
  Range whole() const { return {0, (bytes_.empty() ? shape_.size : bytes_.size()) / 512}; }

  const Shape shape_;
  Qcow2World world_;
  Random random_;
  Bytes bytes_;
  std::map<std::string, Bytes> kept_;
  int made_ = 0;
};

TEST(Qcow2Offline, AnythingInAnyOrder) {
  uint64_t seed = 0;
  for (const Shape& shape : qcow2_shapes()) {
    const auto bits = shape.options.find("refcount_bits");
    if (bits != shape.options.end() && bits->second == "1") continue;
    if (shape.options.count("data_file")) continue;  // refused
    if (shape.block_size != 512) continue;  // sizes would not be multiples of its blocks
    SCOPED_TRACE("shape " + std::to_string(seed));
    Life life(shape, ++seed);
    for (int i = 0; i < 24; i++) {
      SCOPED_TRACE("step " + std::to_string(i));
      ASSERT_NO_FATAL_FAILURE(life.step());
      ASSERT_NO_FATAL_FAILURE(life.verify(i % 6 == 5));
    }
    ASSERT_NO_FATAL_FAILURE(life.verify_snapshots());
  }
}

// --- crashes and failures ---------------------------------------------------------------

using Work = std::function<Task<>(Disks)>;

struct Case {
  std::string name;
  Work work;
};

const Shape kSmall{kMiB / 2, {{"cluster_size", "4K"}}, 0, 512};
const Shape kTiny{kMiB / 2, {{"cluster_size", "512"}}, kMiB, 512};

// An image with two snapshots, one of them of another size, and a disk that differs.
std::unique_ptr<Life> prepared(const Shape& shape) {
  auto life = std::make_unique<Life>(shape, 7);
  life->create();
  life->guest();
  run(size_to(life->disk(), kMiB / 2 + 12 * kKiB + 512, life->references()));
  run(take(life->disk(), Action::create, "larger"));
  run(size_to(life->disk(), kMiB / 2, life->references()));
  return life;
}

std::vector<Case> cases(std::shared_ptr<References> references) {
  const auto snap = [](Action action, std::string name) {
    return [=](Disks disk) { return take(disk, action, name); };
  };
  const auto size = [references](uint64_t bytes) {
    return [=](Disks disk) { return size_to(disk, bytes, references); };
  };
  return {{"create", snap(Action::create, "new")},
          {"apply", snap(Action::apply, "s1")},
          {"resized", snap(Action::apply, "larger")},
          {"delete", snap(Action::remove, "s1")},
          {"grow", size(5 * kMiB + 1536)},
          {"shrink", size(200 * kKiB + 512)}};
}

// As it was, or as it was to be.
void expect_either(const Disks& found, const Disks& before, const Disks& after,
                   const std::shared_ptr<References>& references, bool ask_qemu) {
  ASSERT_NO_FATAL_FAILURE(expect_sound(found, ask_qemu));
  const Bytes header = found->peek(0, 104);
  const bool old = header == before->peek(0, 104);
  ASSERT_TRUE(old || header == after->peek(0, 104));
  const Bytes bytes = image_bytes(found, references);
  ASSERT_TRUE(bytes == image_bytes(old ? before : after, references));
}

void cut_everywhere(const Shape& shape) {
  const auto life = prepared(shape);
  uint64_t cuts = 0;
  for (const Case& each : cases(life->references())) {
    SCOPED_TRACE(each.name);
    const auto before = life->disk();
    const auto disk = before->copy();
    disk->record();
    run(each.work(disk));
    Random random(3);
    // Once it was longer than it is now.
    const uint64_t length = std::max(before->size(), disk->size()) + 4 * kMiB;
    const size_t step = disk->log().size() / 40 + 1;
    for (size_t at = 0; at <= disk->log().size(); at += at + step > disk->log().size() ? 1 : step)
      for (const Survives survives :
           {Survives::nothing, Survives::everything, Survives::anything}) {
        SCOPED_TRACE("event " + std::to_string(at));
        const auto found = disk->crash(at, survives, random);
        found->set_size(length);
        const auto was = life->references();
        ASSERT_NO_FATAL_FAILURE(expect_either(found, before, disk, was, cuts++ % 29 == 0));
      }
  }
}

TEST(Qcow2Offline, APowerCutLeavesTheOldOrTheNew) { cut_everywhere(kSmall); }
TEST(Qcow2Offline, APowerCutLeavesTheOldOrTheNewOverABase) { cut_everywhere(kTiny); }

TEST(Qcow2Offline, EachOperationMayFail) {
  const auto life = prepared(kSmall);
  for (const Case& each : cases(life->references()))
    for (const int error : {EIO, ENOSPC}) {
      SCOPED_TRACE(each.name);
      const auto done = life->disk()->copy();
      done->set_size(life->disk()->size() + 8 * kMiB);
      run(each.work(done));
      bool met = true;
      for (uint64_t nth = 1; met; nth++) {
        SCOPED_TRACE("operation " + std::to_string(nth));
        ASSERT_LT(nth, 2000u);
        const auto disk = life->disk()->copy();
        disk->set_size(life->disk()->size() + 8 * kMiB);
        disk->fail(nth, error);
        const int code = failure_of(each.work(disk)).first;
        met = disk->has_failed();
        // What only makes the file shorter or longer may fail.
        EXPECT_TRUE(code == 0 || (met && code == error));
        disk->fail(0, 0);
        ASSERT_NO_FATAL_FAILURE(expect_sound(disk, nth % 37 == 0));
        const bool old =
            run(read_header(*disk)).l1_offset == run(read_header(*life->disk())).l1_offset;
        EXPECT_TRUE(code != 0 || !old);
        if (nth % 5 == 0) {
          const Bytes bytes = image_bytes(disk, life->references());
          ASSERT_TRUE(bytes == image_bytes(old ? life->disk() : done, life->references()));
        }
        if (!old) continue;
        run(each.work(disk));
        ASSERT_NO_FATAL_FAILURE(expect_sound(disk, false));
      }
    }
}

// --- the table ---------------------------------------------------------------------------

std::string names(const Disks& disk) {
  std::string all;
  for (const Snapshot& each : run(snapshots(disk))) all += each.id + "=" + each.name + " ";
  return all;
}

TEST(Qcow2Offline, IdsAndNamesAreQemus) {
  const auto disk = make_qcow2(kMiB);
  for (const char* name : {"a", "b", "c"}) run(take(disk, Action::create, name));
  EXPECT_EQ(names(disk), "1=a 2=b 3=c ");
  run(take(disk, Action::remove, "2"));
  run(take(disk, Action::create, "d"));
  EXPECT_EQ(names(disk), "1=a 3=c 4=d ");
  const TempFolder folder;
  save(*disk, folder.path("image"));
  std::string output;
  EXPECT_EQ(run_program({"qemu-img", "snapshot", "-l", folder.path("image")}, &output), 0);
  for (const char* line : {"\n1         a  ", "\n3         c  ", "\n4         d  "})
    EXPECT_NE(output.find(line), std::string::npos) << output;
}

Header header_of(const Disks& disk) { return run(read_header(*disk)); }

TEST(Qcow2Offline, WhatIsNotKnownOfASnapshotIsKept) {
  const auto disk = make_qcow2(kMiB);
  run(take(disk, Action::create, "one"));
  SnapshotTable table = run(read_snapshots(*disk, header_of(disk)));
  table.entries[0].unknown = Bytes(20, std::byte(7));
  table.entries[0].what.vm_state_bytes = 5 * kGiB;
  table.entries[0].what.vm_clock_nsec = 1500000000;
  table.entries[0].what.icount = 77;
  disk->poke(header_of(disk).snapshots_offset, encode(table.entries, "disk"));
  ASSERT_NO_FATAL_FAILURE(expect_sound(disk));
  run(take(disk, Action::create, "two"));
  run(size_to(disk, 2 * kMiB));
  run(take(disk, Action::apply, "one"));
  run(take(disk, Action::remove, "two"));
  ASSERT_NO_FATAL_FAILURE(expect_sound(disk));
  table = run(read_snapshots(*disk, header_of(disk)));
  ASSERT_EQ(table.entries.size(), 1u);
  EXPECT_EQ(table.entries[0].unknown, Bytes(20, std::byte(7)));
  EXPECT_EQ(table.entries[0].what.vm_state_bytes, 5 * kGiB);
  EXPECT_EQ(table.entries[0].what.icount, 77u);
  EXPECT_EQ(header_of(disk).size, kMiB);
  const TempFolder folder;
  save(*disk, folder.path("image"));
  std::string output;
  EXPECT_EQ(run_program({"qemu-img", "snapshot", "-l", folder.path("image")}, &output), 0);
  EXPECT_NE(output.find("5 GiB"), std::string::npos) << output;
}

// As programs of 2010 made them: no extra data.
TEST(Qcow2Offline, ASnapshotWithoutASizeKeepsThatOfTheDisk) {
  for (const char* compat : {"1.1", "0.10"}) {
    const auto disk = make_qcow2(kMiB, {{"compat", compat}});
    run(take(disk, Action::create, "one"));
    const Header before = header_of(disk);
    Bytes entry = disk->peek(before.snapshots_offset, 72);
    std::copy_n(entry.begin() + 64, 8, entry.begin() + 40);
    store_be<uint32_t>(entry, 36, 0);
    disk->poke(before.snapshots_offset, entry);
    // In version 3 qemu-img takes that for damage.
    ASSERT_NO_FATAL_FAILURE(expect_sound(disk, before.version == 2));
    EXPECT_EQ(names(disk), "1=one ");
    if (before.version == 2) {
      EXPECT_EQ(failure_of(size_to(disk, 3 * kMiB)).first, ENOTSUP);
      continue;
    }
    run(size_to(disk, 3 * kMiB));
    ASSERT_NO_FATAL_FAILURE(expect_sound(disk));
    EXPECT_EQ(run(snapshots(disk)).at(0).disk_bytes, kMiB);
    run(take(disk, Action::apply, "one"));
    EXPECT_EQ(header_of(disk).size, kMiB);
  }
}

// --- refusals ----------------------------------------------------------------------------

void refused(Task<> task, int code, const std::string& part) {
  const auto [found, sentence] = failure_of(std::move(task));
  EXPECT_EQ(found, code) << sentence;
  EXPECT_NE(sentence.find(part), std::string::npos) << sentence;
}

TEST(Qcow2Offline, WhatCannotBeIsRefused) {
  const auto disk = make_qcow2(kMiB);
  for (const char* name : {"2", "x", "a"}) run(take(disk, Action::create, name));
  const Bytes before = disk->peek(0, 512);
  refused(take(disk, Action::create, "a"), EEXIST, "already");
  refused(take(disk, Action::create, "3"), EEXIST, "already");
  refused(take(disk, Action::create, ""), EINVAL, "1 to 255 bytes");
  refused(take(disk, Action::create, std::string(256, 'n')), EINVAL, "1 to 255 bytes");
  refused(take(disk, Action::apply, "b"), ENOENT, "no snapshot b");
  refused(take(disk, Action::remove, "2"), EINVAL, "only one of them has");
  refused(size_to(disk, 1000), EINVAL, "multiples of 512");
  refused(size_to(disk, 0), EINVAL, "512 bytes to 1024P");
  refused(size_to(disk, kMaxVirtualSize), EFBIG, "32 MiB");
  disk->set_read_only(true);
  refused(take(disk, Action::create, "b"), EROFS, "cannot be written to");
  disk->set_read_only(false);
  EXPECT_EQ(disk->peek(0, 512), before);
  Bytes corrupt(8);
  store_be<uint64_t>(corrupt, 0, kCorrupt);
  disk->poke(72, corrupt);
  refused(take(disk, Action::create, "b"), EROFS, "--repair");
  refused(size_to(disk, 2 * kMiB), EROFS, "--repair");
}

TEST(Qcow2Offline, RefcountsThatCannotCountSoFarAreSaid) {
  Qcow2World world({kMiB, {{"cluster_size", "1K"}, {"refcount_bits", "1"}}, 0, 512}, 1);
  run(world.guest->write({0, 300}));
  run(world.kernel->detach());
  refused(take(world.top, Action::create, "one"), EOVERFLOW, "refcount_bits");
  ASSERT_NO_FATAL_FAILURE(expect_sound(world.top));
}

TEST(Qcow2Offline, NothingIsDoneToAnImageWhoseRefcountsAreWrong) {
  Life life(kSmall, 3);
  life.create();
  const Header header = header_of(life.disk());
  const Bytes entry = life.disk()->peek(header.l1_offset, 8);
  const uint64_t cluster = (load_be<uint64_t>(entry, 0) & kOffsetMask) >> header.cluster_bits;
  const Bytes block = life.disk()->peek(header.refcount_table_offset, 8);
  life.disk()->poke(load_be<uint64_t>(block, 0) + cluster * 2, Bytes(2));
  const Bytes before = life.disk()->peek(0, 512);
  refused(take(life.disk(), Action::create, "b"), EIO, "--repair");
  refused(take(life.disk(), Action::apply, "s1"), EIO, "--repair");
  refused(take(life.disk(), Action::remove, "s1"), EIO, "--repair");
  EXPECT_EQ(life.disk()->peek(0, 512), before);
}

TEST(Qcow2Offline, AnOldOverlayCannotCoverWhatIsBeneath) {
  Qcow2World world({kMiB, {{"compat", "0.10"}}, 3 * kMiB, 512}, 1);
  run(world.kernel->detach());
  refused(size_to(world.top, 2 * kMiB, world.references), ENOTSUP, "version 2");
  refused(size_to(world.top, 2 * kMiB), EINVAL, "no other files");
  run(size_to(world.top, kMiB / 2));
}

TEST(Qcow2Offline, AnOverlayThatIsMadeLargerReadsZeroes) {
  for (const uint64_t size : {kMiB + 512, kMiB + 64 * kKiB}) {
    Qcow2World world({size, {}, 3 * kMiB, 512}, 1);
    Bytes bytes = run(world.kernel->read(0, size / 512));
    run(world.kernel->detach());
    run(size_to(world.top, 4 * kMiB, world.references));
    bytes.resize(4 * kMiB);
    EXPECT_TRUE(image_bytes(world.top, world.references) == bytes);
    ASSERT_NO_FATAL_FAILURE(expect_sound(world.top));
  }
}

// A device has the length that it has: what does not fit is said, and nothing has changed.
class Device : public SimDisk {
 public:
  using SimDisk::SimDisk;
  Task<> resize(uint64_t bytes) override { co_await Disk::resize(bytes); }
};

TEST(Qcow2Offline, ADeviceMayBeFull) {
  Qcow2World world(kSmall, 1);
  run(world.guest->write({0, 1024}));
  run(world.kernel->detach());
  const auto device_of = [&](uint64_t length) {
    const auto device = std::make_shared<Device>("/dev/vg/disk", length, 512u, false);
    device->poke(0, world.top->peek(0, length));
    return device;
  };
  uint64_t used = 128 * 4096;
  while (check_qcow2(device_of(used)).errors) used += 4096;
  for (const uint64_t more : {0, 1, 2, 64}) {
    const auto device = device_of(used + more * 4096);
    const int code = failure_of(take(device, Action::create, "one")).first;
    EXPECT_EQ(code, more < 64 ? ENOSPC : 0) << more;
    ASSERT_NO_FATAL_FAILURE(expect_sound(device));
    EXPECT_EQ(device->size(), used + more * 4096);
  }
}

}  // namespace
}  // namespace cowd::qcow2
