// SPDX-License-Identifier: GPL-2.0-or-later
// Images of every plugin, written and read without a kernel: what is in them then is what
// qemu-img finds, and the image is whole.
#include "cowd/core/image_io.hh"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/sim/image_world.hh"

namespace cowd {
namespace {

using namespace cowd::sim;

constexpr uint64_t kMiB = 1 << 20;

void expect_sound(const Parts& parts) {
  const CheckResult result = check(parts);
  EXPECT_EQ(result.errors, 0u) << result.findings.at(0);
  EXPECT_EQ(result.leaks, 0u) << result.findings.at(0);
}

// Sessions of writes; qemu-img reads what was written.
void use(const std::string& format, const Options& options, uint64_t bytes,
         uint32_t block_size = 512, uint64_t unit = 512) {
  SCOPED_TRACE(format + " on blocks of " + std::to_string(block_size));
  const auto disk = make("image", format, bytes, options, {}, block_size);
  const Parts parts{format, disk};
  Bytes model(bytes);
  if (format == "raw") model = disk->peek(0, bytes);
  Random random(bytes + block_size);
  for (int session = 0; session < 3; session++) {
    std::unique_ptr<Image> image = run(open(parts, true));
    run(scribble(*image, random, 25, model, unit));
    run(close(std::move(image), disk));
    expect_sound(parts);
    EXPECT_TRUE(bytes_of(parts) == model);
    Bytes theirs = by_qemu({disk}, format);
    theirs.resize(bytes);
    EXPECT_TRUE(theirs == model) << "qemu-img reads something else";
  }
}

TEST(ImageIo, WritesRaw) { use("raw", {}, kMiB + 512); }

TEST(ImageIo, WritesQcow2) {
  use("qcow2", {{"cluster_size", "4K"}}, kMiB + 1536);
  use("qcow2", {{"cluster_size", "512"}, {"refcount_bits", "64"}}, kMiB / 2);
  use("qcow2", {{"compat", "0.10"}}, 3 * kMiB);
  use("qcow2", {{"cluster_size", "4K"}}, kMiB, 4096);
}

TEST(ImageIo, WritesVhd) {
  use("vhd", {{"block", "64K"}}, kMiB + 512 * 9);
  use("vhd", {{"type", "fixed"}}, kMiB);
}

TEST(ImageIo, WritesVmdkAndQcow) {
  use("vmdk", {}, 2 * kMiB);
  use("qcow", {}, kMiB + 512);
}

// More granules in one write than may be uncommitted.
TEST(ImageIo, CommitsBetween) {
  const uint64_t bytes = 3 * kMiB;
  const auto disk = make("image", "qcow2", bytes, {{"cluster_size", "512"}});
  const Parts parts{"qcow2", disk};
  std::unique_ptr<Image> image = run(open(parts, true));
  ImageIo io(*image);
  Random random(1);
  Bytes model(bytes);
  for (std::byte& each : model) each = std::byte(random());
  disk->reset_counts();
  run(io.write({0, bytes / 512}, model));
  EXPECT_GT(disk->counts().flushes, 0u);
  run(io.commit());
  run(close(std::move(image), disk));
  expect_sound(parts);
  EXPECT_TRUE(by_qemu({disk}, "qcow2") == model);
}

// Bases that are longer, shorter, and end within a cluster.
TEST(ImageIo, CopiesUpFromWhatABackingFileHas) {
  for (const uint64_t base_bytes : {2 * kMiB, kMiB / 2 + 512, uint64_t{512}}) {
    const auto base = std::make_shared<SimDisk>("base", base_bytes);
    const auto chain = std::make_shared<Chain>();
    chain->disks["base"] = base;
    Parts parts{"qcow2", nullptr, nullptr, chain};
    const auto top =
        make("top", "qcow2", kMiB,
             {{"cluster_size", "8K"}, {"backing_file", "base"}, {"backing_fmt", "raw"}}, parts);
    parts.top = top;
    Bytes model = base->peek(0, base_bytes);
    model.resize(kMiB);
    Random random(base_bytes);
    std::unique_ptr<Image> image = run(open(parts, true));
    run(scribble(*image, random, 30, model));
    run(close(std::move(image), top));
    EXPECT_TRUE(by_qemu({top, base}, "qcow2") == model);
    expect_sound(parts);
  }
}

TEST(ImageIo, WritesDscow) {
  for (const uint64_t base_bytes : {2 * kMiB, kMiB / 2 + 512, uint64_t{0}}) {
    std::shared_ptr<SimDisk> base;
    if (base_bytes) base = std::make_shared<SimDisk>("base", base_bytes);
    Parts parts{"dscow", nullptr, base};
    const auto top = make("top", "dscow", kMiB + 512, {{"granule", "8K"}}, parts);
    parts.top = top;
    Bytes model(kMiB + 512);
    if (base) {
      const Bytes beneath = base->peek(0, std::min<uint64_t>(base_bytes, model.size()));
      std::ranges::copy(beneath, model.begin());
    }
    Random random(base_bytes);
    for (int session = 0; session < 3; session++) {
      std::unique_ptr<Image> image = run(open(parts, true));
      run(scribble(*image, random, 25, model));
      run(close(std::move(image), top));
      EXPECT_TRUE(bytes_of(parts) == model);
      EXPECT_EQ(check(parts).errors, 0u);
    }
  }
}

// A first write that is cut off by an error is not told; the image is as it was, or has it.
TEST(ImageIo, AFailedWriteLeavesAWholeImage) {
  const auto base = std::make_shared<SimDisk>("base", kMiB);
  const auto chain = std::make_shared<Chain>();
  chain->disks["base"] = base;
  Parts parts{"qcow2", nullptr, nullptr, chain};
  const auto made =
      make("top", "qcow2", kMiB,
           {{"cluster_size", "8K"}, {"backing_file", "base"}, {"backing_fmt", "raw"}}, parts);
  const Bytes before = base->peek(0, kMiB);
  Bytes after = before;
  const Range range{5, 40};
  std::fill_n(after.begin() + 5 * 512, 40 * 512, std::byte{0x5a});
  const auto data = std::span<const std::byte>(after).subspan(5 * 512, 40 * 512);
  bool failed = true;
  for (uint64_t nth = 1; failed; nth++) {
    const auto top = made->copy();
    parts.top = top;
    std::unique_ptr<Image> image = run(open(parts, true));
    ImageIo io(*image);
    top->fail(nth, EIO);
    const bool written = failure_of(io.write(range, data)).first == 0;
    failed = top->has_failed();
    EXPECT_EQ(written, !failed);
    top->fail(0, 0);
    run(close(std::move(image), top));
    expect_sound(parts);
    const Bytes found = bytes_of(parts);
    EXPECT_TRUE(
        written ? found == after
                : std::equal(found.begin(), found.begin() + 5 * 512, before.begin()) &&
                      std::equal(found.begin() + 45 * 512, found.end(), before.begin() + 45 * 512));
  }
}

// What the kernel would refuse is refused.
class Liar : public Image {
 public:
  explicit Liar(std::shared_ptr<Disk> disk) : disk_(std::move(disk)) {}
  std::vector<Answer> answers;
  uint64_t sectors() const override { return 64; }
  std::vector<Destination> destinations() const override { return {{disk_.get(), false}}; }
  uint32_t discard_granularity() const override { return 0; }
  std::vector<Answer> initial() const override { return {}; }
  Task<std::vector<Answer>> resolve(Range, Access) override { co_return answers; }
  void promoted(const Promotion&) override { ADD_FAILURE() << "a promotion is told"; }
  Task<> commit(uint64_t, bool) override { co_return; }
  Task<std::vector<Answer>> discard(Range) override { co_return answers; }
  Task<std::vector<Answer>> zero(Range) override { co_return answers; }
  Task<std::vector<MapEntry>> map(Range) override { co_return std::vector<MapEntry>{}; }
  Task<> preserve() override { co_return; }
  Task<> close() override { co_return; }
  nlohmann::json stats() const override { return nlohmann::json::object(); }

 private:
  const std::shared_ptr<Disk> disk_;
};

TEST(ImageIo, RefusesWhatTheKernelWouldRefuse) {
  Liar liar(std::make_shared<SimDisk>("disk", 64 * 512));
  ImageIo io(liar);
  Bytes bytes(512);
  const auto read = [&] { return failure_of(io.read({0, 1}, bytes)).first; };
  const auto write = [&] { return failure_of(io.write({0, 1}, bytes)).first; };
  EXPECT_EQ(read(), EIO);
  EXPECT_EQ(write(), EIO);
  Extent extent;
  extent.range = {0, 64};
  extent.read = Side::at(1, 0);
  liar.answers = {extent};
  EXPECT_EQ(read(), EIO);   // no such destination
  EXPECT_EQ(write(), EIO);  // no write side
  extent.read = extent.write = Side::at(0, 0);
  liar.answers = {extent};
  EXPECT_EQ(read(), 0);
  EXPECT_EQ(write(), EIO);  // a read-only destination
  extent.granule = 8;
  liar.answers = {extent};
  EXPECT_EQ(read(), EIO);  // an overlay without bits
}

}  // namespace
}  // namespace cowd
