// SPDX-License-Identifier: GPL-2.0-or-later
// Images that qemu-img made, with everything in them that we never make ourselves, are written
// to by our engine; then qemu-img judges: no errors, no leaks, and the bytes of the guest.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "formats/common/bytes.hh"
#include "tests/sim/qcow2_world.hh"

namespace cowd::qcow2 {
namespace {

using namespace cowd::sim;

constexpr uint64_t kSize = 2 * kMiB;

void qemu(std::vector<std::string> words) {
  std::string output;
  const std::string what = words[0] + " " + words[1];
  ASSERT_EQ(run_program(std::move(words), &output), 0) << what << ": " << output;
}

class Qcow2Differential : public testing::Test {
 protected:
  Qcow2Differential() : image_(folder_.path("image")), references_(new FakeReferences) {}

  void make_raw(const std::string& path, uint64_t size, uint64_t seed) {
    Bytes bytes(size);
    Random random(seed);
    for (uint64_t at = 0; at < size; at += 512)
      if (random() % 3)
        std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(at), 512, std::byte(random()));
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(size));
  }

  void convert(std::vector<std::string> options, uint64_t seed) {
    make_raw(folder_.path("raw"), kSize, seed);
    std::vector<std::string> words = {"qemu-img", "convert", "-f", "raw", "-O", "qcow2"};
    words.insert(words.end(), options.begin(), options.end());
    words.push_back(folder_.path("raw"));
    words.push_back(image_);
    qemu(words);
  }

  // image_ over the image "middle" over "raw", of three lengths.
  void make_chain(uint64_t seed, const std::string& middle_option, const std::string& option,
                  const std::string& size) {
    const std::string raw = folder_.path("raw"), middle = folder_.path("middle");
    make_raw(raw, kSize - 512 * 3, seed);
    std::filesystem::remove(image_);
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw",
                                  "-o", middle_option, middle, "1800k"}));
    ASSERT_NO_FATAL_FAILURE(qemu(
        {"qemu-io", "-f", "qcow2", "-c", "write -P 1 3k 90k", "-c", "write -z 300k 64k", middle}));
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "create", "-q", "-f", "qcow2", "-b", middle, "-F",
                                  "qcow2", "-o", option, image_, size}));
  }

  // A guest writes to image_, in two sessions; then it is judged. So is its data file.
  void write_on(uint64_t seed, bool leaks_before = false, const std::string& data_file = "",
                uint32_t block_size = 512) {
    const Bytes before = qemu_bytes(image_);
    const auto disk = load(image_, true, block_size);
    const auto data = data_file.empty() ? nullptr : load(data_file, false);
    if (data) references_->add(data_file, data);
    Qcow2World world({kMiB, {}, 0, block_size}, seed);  // for its guest's habits
    world.top = disk;
    world.kernel = std::make_unique<KernelModel>(qcow2_opener(disk, references_), seed);
    run(world.kernel->attach());
    world.guest = std::make_unique<Guest>(*world.kernel, before.size() / 512, before);
    const Range all{0, before.size() / 512};
    run(world.guest->verify());
    for (int session = 0; session < 2; session++) {
      run(world.play(all, 30));
      run(world.kernel->detach());
      run(world.kernel->attach());
      run(world.guest->verify());
    }
    const Bytes now = run(world.kernel->read(0, before.size() / 512));
    run(world.kernel->image().close());
    disk->set_size(round_up(world.kernel->image().used_bytes(), 512));
    world.kernel->die();
    const CheckResult result = check_qcow2(disk);
    EXPECT_EQ(result.errors, 0u) << result.findings.at(0);
    std::string output;
    const int status = qemu_check(*disk, &output);
    EXPECT_TRUE(status == 0 || (leaks_before && status == 3)) << output;
    save(*disk, image_);
    if (data) save(*data, data_file);
    EXPECT_EQ(qemu_bytes(image_), now);
  }

  // What qemu-img does to a copy and we to the image: both may, or both refuse, and then the images
  // are the same to whoever looks at them through qemu-img.
  void both(const std::vector<std::string>& words, Task<> ours, const std::shared_ptr<Disk>& disk) {
    const std::string other = folder_.path("other");
    std::filesystem::copy_file(image_, other, std::filesystem::copy_options::overwrite_existing);
    std::vector<std::string> command = {"qemu-img"};
    command.insert(command.end(), words.begin(), words.end());
    for (std::string& word : command)
      if (word == "IMAGE") word = other;
    std::string output;
    const int status = run_program(command, &output);
    const auto [code, sentence] = failure_of(std::move(ours));
    EXPECT_EQ(status == 0, code == 0) << output << sentence;
    save(static_cast<SimDisk&>(*disk), image_);
    for (const std::string& image : {image_, other})
      ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "check", image}));
    ASSERT_TRUE(qemu_bytes(image_) == qemu_bytes(other));
    EXPECT_EQ(map_of(image_), map_of(other));
    EXPECT_EQ(snapshots_of(image_), snapshots_of(other));
  }

  static nlohmann::json asked(std::vector<std::string> words) {
    std::string output;
    EXPECT_EQ(run_program(std::move(words), &output), 0) << output;
    return nlohmann::json::parse(output);
  }

  // But for where in the file it is.
  static nlohmann::json map_of(const std::string& image) {
    nlohmann::json all = nlohmann::json::array();
    for (nlohmann::json each : asked({"qemu-img", "map", "--output=json", image})) {
      each.erase("offset");
      nlohmann::json* last = all.empty() ? nullptr : &all.back();
      nlohmann::json next = each;
      if (last) next["start"] = (*last)["start"], next["length"] = (*last)["length"];
      if (last && next == *last)
        (*last)["length"] = (*last)["length"].get<uint64_t>() + each["length"].get<uint64_t>();
      else
        all.push_back(each);
    }
    return all;
  }

  static nlohmann::json snapshots_of(const std::string& image) {
    nlohmann::json list = asked({"qemu-img", "info", "--output=json", image});
    nlohmann::json names = {list["virtual-size"]};
    for (const nlohmann::json& each : list.value("snapshots", nlohmann::json::array()))
      names.push_back({each["id"], each["name"], each["vm-state-size"]});
    return names;
  }

  void both_snapshot(const char* option, SnapshotRequest::Action action, const std::string& name) {
    SnapshotRequest request;
    const auto disk = load(image_, false);
    request.top = disk;
    request.action = action;
    request.name = name;
    both({"snapshot", option, name, "IMAGE"}, snapshot(request), disk);
  }

  void both_resize(uint64_t size) {
    ResizeRequest request;
    const auto disk = load(image_, false);
    request.top = disk;
    request.size = size;
    request.references = references_;
    both({"resize", "-q", "-f", "qcow2", "--shrink", "IMAGE", std::to_string(size)},
         resize(request), disk);
  }

  // Sizes are whole clusters: qemu-img lets what a smaller disk had in a cut one come back.
  void change_something(Random& random) {
    using Action = SnapshotRequest::Action;
    const std::string name = std::string(1, static_cast<char>('a' + random() % 3));
    const bool there = snapshots_of(image_).dump().find('"' + name + '"') != std::string::npos;
    switch (random() % 4) {
      case 0: return both_resize((1 + random() % 48) * 64 * kKiB);
      case 1: return write_on(random());
      case 2: return both_snapshot("-a", Action::apply, name);
      default: break;
    }
    if (there)
      both_snapshot("-d", Action::remove, name);
    else
      both_snapshot("-c", Action::create, name);
  }

  TempFolder folder_;
  const std::string image_;
  std::shared_ptr<FakeReferences> references_;
};

TEST_F(Qcow2Differential, PlainImages) {
  uint64_t seed = 1;
  for (const char* option :
       {"cluster_size=64k", "cluster_size=512", "cluster_size=4k,compat=0.10", "cluster_size=2M",
        "cluster_size=1k,refcount_bits=1", "cluster_size=1k,refcount_bits=8",
        "cluster_size=4k,refcount_bits=64", "cluster_size=4k,lazy_refcounts=on"}) {
    SCOPED_TRACE(option);
    ASSERT_NO_FATAL_FAILURE(convert({"-o", option}, seed));
    ASSERT_NO_FATAL_FAILURE(write_on(++seed));
  }
}

TEST_F(Qcow2Differential, CompressedClustersAreReplaced) {
  uint64_t seed = 20;
  for (const char* option : {"cluster_size=4k", "cluster_size=64k,compression_type=zstd",
                             "cluster_size=512", "cluster_size=64k,compat=0.10"}) {
    SCOPED_TRACE(option);
    ASSERT_NO_FATAL_FAILURE(convert({"-c", "-o", option}, seed));
    ASSERT_NO_FATAL_FAILURE(write_on(++seed));
  }
}

TEST_F(Qcow2Differential, SnapshotsKeepWhatTheyHave) {
  uint64_t seed = 40;
  for (const char* option : {"cluster_size=4k", "cluster_size=64k", "cluster_size=512",
                             "cluster_size=4k,refcount_bits=4"}) {
    SCOPED_TRACE(option);
    ASSERT_NO_FATAL_FAILURE(convert({"-o", option}, seed));
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "snapshot", "-c", "one", image_}));
    const Bytes one = qemu_bytes(image_);
    ASSERT_NO_FATAL_FAILURE(write_on(++seed));
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "snapshot", "-c", "two", image_}));
    const Bytes two = qemu_bytes(image_);
    ASSERT_NO_FATAL_FAILURE(write_on(++seed));
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "snapshot", "-a", "two", image_}));
    EXPECT_EQ(qemu_bytes(image_), two);
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "snapshot", "-d", "two", image_}));
    ASSERT_NO_FATAL_FAILURE(write_on(++seed));
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "snapshot", "-a", "one", image_}));
    EXPECT_EQ(qemu_bytes(image_), one);
  }
}

TEST_F(Qcow2Differential, SnapshotsAndSizesAreAsQemuImgMakesThem) {
  uint64_t seed = 200;
  for (const char* option : {"cluster_size=4k", "cluster_size=64k", "cluster_size=512",
                             "cluster_size=4k,compat=0.10", "cluster_size=1k,refcount_bits=64"}) {
    SCOPED_TRACE(option);
    ASSERT_NO_FATAL_FAILURE(convert({"-o", option}, ++seed));
    Random random(seed);
    for (int i = 0; i < 9; i++) ASSERT_NO_FATAL_FAILURE(change_something(random));
  }
}

TEST_F(Qcow2Differential, SnapshotsAndSizesOfOverlays) {
  uint64_t seed = 220;
  const std::string raw = folder_.path("raw");
  for (const char* option : {"cluster_size=4k", "cluster_size=64k"}) {
    SCOPED_TRACE(option);
    make_raw(raw, kSize, ++seed);
    std::filesystem::remove(image_);
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw",
                                  "-o", option, image_, "1M"}));
    references_->add(raw, load(raw, false));
    Random random(seed);
    for (int i = 0; i < 8; i++) ASSERT_NO_FATAL_FAILURE(change_something(random));
  }
}

// Extended entries are only changed here, never written by a guest of ours.
TEST_F(Qcow2Differential, SnapshotsAndSizesOfCompressedAndExtendedImages) {
  using Action = SnapshotRequest::Action;
  uint64_t seed = 240;
  for (const char* option : {"cluster_size=64k,extended_l2=on", "cluster_size=64k"}) {
    SCOPED_TRACE(option);
    ASSERT_NO_FATAL_FAILURE(convert({"-c", "-o", option}, ++seed));
    ASSERT_NO_FATAL_FAILURE(both_snapshot("-c", Action::create, "one"));
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-io", "-f", "qcow2", "-c", "write -P 7 30k 300k", "-c",
                                  "write -z 600k 10k", "-c", "write -P 8 700k 2k", image_}));
    ASSERT_NO_FATAL_FAILURE(both_resize(3 * kMiB));
    ASSERT_NO_FATAL_FAILURE(both_snapshot("-c", Action::create, "two"));
    ASSERT_NO_FATAL_FAILURE(both_resize(640 * kKiB));
    ASSERT_NO_FATAL_FAILURE(both_snapshot("-a", Action::apply, "one"));
    ASSERT_NO_FATAL_FAILURE(both_snapshot("-d", Action::remove, "one"));
    ASSERT_NO_FATAL_FAILURE(both_snapshot("-a", Action::apply, "2"));
    ASSERT_NO_FATAL_FAILURE(both_snapshot("-d", Action::remove, "two"));
  }
}

TEST_F(Qcow2Differential, ZeroClustersAndHoles) {
  uint64_t seed = 60;
  for (const char* option : {"cluster_size=4k", "cluster_size=64k"}) {
    ASSERT_NO_FATAL_FAILURE(convert({"-o", option}, seed));
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-io", "-f", "qcow2", "-c", "write -z 128k 256k", "-c",
                                  "write -zu 512k 256k", "-c", "discard 1M 128k", image_}));
    ASSERT_NO_FATAL_FAILURE(write_on(++seed));
  }
  ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "create", "-q", "-f", "qcow2", "-o",
                                "preallocation=metadata,cluster_size=4k", image_, "3M"}));
  ASSERT_NO_FATAL_FAILURE(write_on(++seed));
}

TEST_F(Qcow2Differential, Chains) {
  uint64_t seed = 80;
  for (const char* option :
       {"cluster_size=4k", "cluster_size=64k", "cluster_size=512", "cluster_size=4k,compat=0.10"})
    for (const char* size : {"1M", "1537k"}) {
      SCOPED_TRACE(std::string(option) + " " + size);
      const std::string raw = folder_.path("raw"), middle = folder_.path("middle");
      ASSERT_NO_FATAL_FAILURE(make_chain(++seed, "cluster_size=1k", option, size));
      references_->add(raw, load(raw, false));
      references_->add(middle, load(middle, false));
      ASSERT_NO_FATAL_FAILURE(write_on(++seed));
    }
}

// What is beneath ends and changes within blocks.
TEST_F(Qcow2Differential, AChainOnADeviceWithLargeBlocks) {
  const std::string raw = folder_.path("raw"), middle = folder_.path("middle");
  make_raw(raw, kSize - 512 * 3, 180);
  ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw",
                                "-o", "cluster_size=512", middle, "1801k"}));
  std::vector<std::string> words = {"qemu-io", "-f", "qcow2", middle};
  for (uint64_t at = 0; at < 400; at += 7) {
    words.push_back("-c");
    words.push_back("write -P 1 " + std::to_string(at * 1536) + " 1k");
  }
  ASSERT_NO_FATAL_FAILURE(qemu(words));
  references_->add(raw, load(raw, false));
  references_->add(middle, load(middle, false));
  for (const char* option : {"cluster_size=4k", "cluster_size=128k,extended_l2=on"}) {
    std::filesystem::remove(image_);
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "create", "-q", "-f", "qcow2", "-b", middle, "-F",
                                  "qcow2", "-o", option, image_, "2M"}));
    ASSERT_NO_FATAL_FAILURE(write_on(181, false, "", 4096));
  }
}

TEST_F(Qcow2Differential, Subclusters) {
  uint64_t seed = 200;
  for (const char* option : {"cluster_size=16k", "cluster_size=64k", "cluster_size=2M"}) {
    SCOPED_TRACE(option);
    const std::string options = std::string(option) + ",extended_l2=on";
    ASSERT_NO_FATAL_FAILURE(convert({"-o", options}, seed));
    ASSERT_NO_FATAL_FAILURE(
        qemu({"qemu-io", "-f", "qcow2", "-c", "write -z 128k 36k", "-c", "write -zu 512k 250k",
              "-c", "discard 1M 130k", "-c", "write -P 7 520k 3k", image_}));
    ASSERT_NO_FATAL_FAILURE(write_on(++seed));
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "snapshot", "-c", "one", image_}));
    const Bytes one = qemu_bytes(image_);
    ASSERT_NO_FATAL_FAILURE(write_on(++seed));
    ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "snapshot", "-a", "one", image_}));
    EXPECT_EQ(qemu_bytes(image_), one);
    ASSERT_NO_FATAL_FAILURE(convert({"-c", "-o", options}, seed));
    ASSERT_NO_FATAL_FAILURE(write_on(++seed));
  }
}

TEST_F(Qcow2Differential, SubclustersInChains) {
  uint64_t seed = 220;
  for (const char* option : {"cluster_size=16k,extended_l2=on", "extended_l2=on",
                             "extended_l2=on,preallocation=metadata"})
    for (const char* size : {"1M", "1537k"}) {
      SCOPED_TRACE(std::string(option) + " " + size);
      const std::string raw = folder_.path("raw"), middle = folder_.path("middle");
      ASSERT_NO_FATAL_FAILURE(make_chain(++seed, "extended_l2=on", option, size));
      ASSERT_NO_FATAL_FAILURE(qemu({"qemu-io", "-f", "qcow2", "-c", "write -P 2 11k 5k", "-c",
                                    "write -z 308k 6k", "-c", "write -P 3 700k 70k", image_}));
      references_->add(raw, load(raw, false));
      references_->add(middle, load(middle, false));
      ASSERT_NO_FATAL_FAILURE(write_on(++seed));
    }
}

TEST_F(Qcow2Differential, DataFiles) {
  uint64_t seed = 240;
  const std::string data = folder_.path("data");
  for (const char* option : {"cluster_size=4k", "extended_l2=on", "data_file_raw=on"}) {
    SCOPED_TRACE(option);
    const std::string options = std::string(option) + ",data_file=" + data;
    ASSERT_NO_FATAL_FAILURE(convert({"-o", options}, seed));
    ASSERT_NO_FATAL_FAILURE(qemu(
        {"qemu-io", "-f", "qcow2", "-c", "write -z 128k 64k", "-c", "discard 1M 128k", image_}));
    ASSERT_NO_FATAL_FAILURE(write_on(++seed, false, data));
    const bool raw = run(read_header(*load(image_, false))).autoclear & kRawExternal;
    EXPECT_EQ(raw, std::string(option) == "data_file_raw=on");
    if (raw) {
      EXPECT_EQ(read_file(data), qemu_bytes(image_));
    }
  }
}

// As a program leaves it that died with lazy refcounts: they say less than there is.
TEST_F(Qcow2Differential, ADirtyImageIsPutRightBeforeItIsWrittenTo) {
  for (int i = 0; i < 4; i++) {
    const bool without_blocks = i & 1;
    const char* options = i & 2 ? "cluster_size=16k,lazy_refcounts=on,extended_l2=on"
                                : "cluster_size=4k,lazy_refcounts=on";
    ASSERT_NO_FATAL_FAILURE(convert({"-o", options}, 100));
    const auto disk = load(image_, false);
    const Header header = run(read_header(*disk));
    Bytes dirty(8);
    store_be<uint64_t>(dirty, 0, header.incompatible | kDirty);
    disk->poke(72, dirty);
    const Bytes entry = disk->peek(header.refcount_table_offset, 8);
    const Bytes zeroes(4096 - 100);
    if (without_blocks)
      disk->poke(header.refcount_table_offset, Bytes(8));
    else
      disk->poke(load_be<uint64_t>(entry, 0) + 100, zeroes);
    EXPECT_GT(check_qcow2(disk).errors, 0u);
    save(*disk, image_);
    const Bytes before = image_bytes(load(image_, false));
    const auto again = load(image_, true);
    KernelModel kernel(qcow2_opener(again), 1);
    run(kernel.attach());
    Guest guest(kernel, before.size() / 512, before);
    run(guest.write({100, 300}));
    run(guest.verify());
    run(kernel.detach());
    std::string output;
    EXPECT_EQ(qemu_check(*again, &output), 0) << output;
    EXPECT_EQ(check_qcow2(again).errors, 0u);
    const Header after = run(read_header(*again));
    EXPECT_EQ(after.incompatible & kDirty, 0u);
    EXPECT_EQ(after.compatible & kLazyRefcounts, kLazyRefcounts);
  }
}

TEST_F(Qcow2Differential, BitmapsAreGivenUpWhenItIsWrittenTo) {
  ASSERT_NO_FATAL_FAILURE(convert({"-o", "cluster_size=64k"}, 120));
  ASSERT_NO_FATAL_FAILURE(qemu({"qemu-img", "bitmap", "--add", image_, "changes"}));
  const auto disk = load(image_, false);
  const CheckResult with = check_qcow2(disk);
  EXPECT_EQ(with.errors + with.leaks, 0u);
  ASSERT_NO_FATAL_FAILURE(write_on(121, true));
  const auto written = load(image_, true);
  EXPECT_EQ(run(read_header(*written)).autoclear, 0u);
  check_qcow2(written, true);
  EXPECT_EQ(check_qcow2(written).leaks, 0u);
}

TEST_F(Qcow2Differential, DamageIsRepaired) {
  ASSERT_NO_FATAL_FAILURE(convert({"-o", "cluster_size=4k"}, 130));
  const Bytes before = qemu_bytes(image_);
  Random random(3);
  for (int i = 0; i < 12; i++) {
    const auto disk = load(image_, false);
    const Header header = run(read_header(*disk));
    const Bytes entry = disk->peek(header.refcount_table_offset, 8);
    for (int n = 0; n < 5; n++) {
      const Bytes value(1, std::byte(random() % 3));
      disk->poke(load_be<uint64_t>(entry, 0) + 1 + random() % 400 * 2, value);
    }
    if (i % 4 == 3) disk->poke(header.refcount_table_offset, Bytes(8));
    check_qcow2(disk, true);
    const CheckResult after = check_qcow2(disk);
    EXPECT_EQ(after.errors + after.leaks, 0u) << after.findings.at(0);
    std::string output;
    EXPECT_EQ(qemu_check(*disk, &output), 0) << output;
    save(*disk, folder_.path("repaired"));
    EXPECT_EQ(qemu_bytes(folder_.path("repaired")), before);
  }
}

// One whose refcounts say that everything is free: some programs make such.
TEST_F(Qcow2Differential, AnImageWithoutRefcountsIsNotWrittenTo) {
  ASSERT_NO_FATAL_FAILURE(convert({"-o", "cluster_size=4k"}, 140));
  const auto disk = load(image_, true);
  const Header header = run(read_header(*disk));
  const Bytes entry = disk->peek(header.refcount_table_offset, 8);
  disk->poke(load_be<uint64_t>(entry, 0), Bytes(4096));
  EXPECT_EQ(failure_of(open(qcow2_request(disk))).first, EIO);
  check_qcow2(disk, true);
  run(open(qcow2_request(disk)));
}

}  // namespace
}  // namespace cowd::qcow2
