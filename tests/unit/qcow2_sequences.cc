// SPDX-License-Identifier: GPL-2.0-or-later
// Any sequence on any qcow2 image: with any options, on images of other formats and lengths, begun
// by us or by qemu-img; sessions of a guest, and between them snapshots and other sizes. One
// judgement in the end: qemu-img finds the same disk, the same map, no errors and no leaks.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "formats/common/bytes.hh"
#include "formats/qcow/qcow.hh"
#include "formats/qcow2/operations.hh"
#include "formats/raw/raw.hh"
#include "formats/vmdk/vmdk.hh"
#include "tests/sim/growing_world.hh"
#include "tests/sim/judge.hh"
#include "tests/sim/sequences.hh"

namespace cowd::qcow2 {
namespace {

using namespace cowd::sim;

constexpr uint64_t kSectorBytes = 512, kKiB = 1 << 10, kMiB = 1 << 20;
constexpr uint64_t kShared = 12;  // sequences on copies of one image of qemu-img

template <typename T>
T pick(Random& random, const std::vector<T>& from) {
  return from[random() % from.size()];
}

bool one_in(uint64_t n, Random& random) { return random() % n == 0; }

// --- what an image is to be -----------------------------------------------------------------

struct Plan {
  Options options;  // as qemu-img create has them
  uint64_t bytes = 0;
  uint64_t most = 0;     // that it may become
  uint64_t beneath = 0;  // bytes of its backing file; 0: none
  uint32_t block_size = 512;

  std::string option(const std::string& name) const {
    const auto found = options.find(name);
    return found == options.end() ? "" : found->second;
  }
  bool has_data_file() const { return options.contains("data_file"); }
  // Refcounts that several clusters in one place may be too much for.
  bool is_narrow() const {
    return options.contains("refcount_bits") && std::stoul(option("refcount_bits")) < 16;
  }
  bool is_old() const { return option("compat") == "0.10"; }
  uint64_t unit() const { return block_size; }
  uint64_t some_size(Random& random) const { return (1 + random() % (most / unit())) * unit(); }
};

void choose_new_features(Plan& plan, unsigned cluster_bits, Random& random) {
  Options& options = plan.options;
  const bool large = cluster_bits >= 14;
  options["refcount_bits"] =
      pick<std::string>(random, {"1", "2", "4", "8", "16", "16", "32", "64"});
  if (one_in(4, random)) options["lazy_refcounts"] = "on";
  if (one_in(4, random)) options["compression_type"] = "zstd";
  if (large && one_in(3, random)) options["extended_l2"] = "on";
  if (one_in(8, random)) options["data_file"] = "data.raw";
  if (plan.has_data_file() && !plan.beneath && one_in(2, random)) options["data_file_raw"] = "on";
}

Plan some_plan(Random& random) {
  Plan plan;
  const auto cluster_bits = pick<unsigned>(random, {9, 10, 12, 12, 14, 14, 16, 16, 18});
  const unsigned bits = one_in(16, random) ? 21 : cluster_bits;
  plan.options["cluster_size"] = std::to_string(1 << bits);
  plan.most = bits == 21 ? 5 * kMiB : bits < 12 ? kMiB / 2 : 3 * kMiB / 2;
  if (one_in(2, random)) {
    plan.options["backing_file"] = "base";
    plan.options["backing_fmt"] = pick<std::string>(random, {"raw", "qcow", "qcow2", "vmdk"});
    plan.beneath = (1 + random() % (plan.most / kSectorBytes)) * kSectorBytes;
    if (plan.option("backing_fmt") == "vmdk") plan.beneath = round_up(plan.beneath, 64 * kKiB);
  }
  if (one_in(5, random))
    plan.options["compat"] = "0.10";
  else
    choose_new_features(plan, bits, random);
  if (!plan.beneath && one_in(8, random)) plan.options["preallocation"] = "metadata";
  const unsigned granule_bits = plan.options.contains("extended_l2") ? bits - 5 : bits;
  if (granule_bits >= 12 && one_in(5, random)) plan.block_size = 4096;
  plan.bytes = plan.some_size(random);
  return plan;
}

// --- images ---------------------------------------------------------------------------------

// An image, and what is in it.
struct Beginning {
  Plan plan;
  GrowingFormat format;
  std::shared_ptr<SimDisk> top;
  Bytes content;
  std::map<std::string, Bytes> snapshots;
  bool packed = false;  // has compressed clusters, of which several count for one place
};

std::shared_ptr<Files> no_files() {
  return std::make_shared<Files>(std::map<std::string, Files::Opener>{
      {"raw", raw::open}, {"qcow", qcow::open}, {"qcow2", open}, {"vmdk", vmdk::open}});
}

GrowingFormat format_of(const std::string& name, const std::shared_ptr<Files>& files) {
  if (name == "qcow") return {name, false, qcow::create, qcow::open, qcow::check, qcow::room, {}};
  if (name == "vmdk") return {name, true, vmdk::create, vmdk::open, vmdk::check, vmdk::room, {}};
  GrowingFormat made{name, true, create, open, check, room, {}};
  made.files = files;
  return made;
}

std::shared_ptr<SimDisk> raw_disk(const std::string& name, const Bytes& content) {
  auto disk = std::make_shared<SimDisk>(name, content.size(), 512, false);
  disk->poke(0, content);
  return disk;
}

Bytes over(Bytes content, const Bytes& beneath) {
  std::copy_n(beneath.begin(), std::min(beneath.size(), content.size()), content.begin());
  return content;
}

// As a guest leaves it.
void write_on(Beginning& it, uint64_t seed) {
  Random random(seed);
  Life life(it.format, it.top, seed, one_in(5, random) ? Durability::always : Durability::flush);
  life.attach();
  Guest guest(life.kernel, it.content.size() / kSectorBytes, it.content);
  play_session(life, guest, random);
  it.content = run(life.kernel.read(0, guest.sectors()));
  life.detach();
}

// The backing file, of a chain perhaps; what it holds.
Bytes make_base(const Plan& plan, const std::shared_ptr<Files>& files, Random& random) {
  const std::string name = plan.option("backing_fmt");
  Beginning base;
  if (name == "raw") {
    base.content = some_content(plan.beneath, random);
    files->disks["base"] = raw_disk("base", base.content);
    return base.content;
  }
  base.format = format_of(name, files);
  base.content.resize(plan.beneath);
  if (name == "qcow2") {
    const Bytes deepest = some_content(plan.some_size(random), random);
    files->disks["deepest"] = raw_disk("deepest", deepest);
    base.format.options = {
        {"cluster_size", "4K"}, {"backing_file", "deepest"}, {"backing_fmt", "raw"}};
    base.content = over(base.content, deepest);
  }
  base.top = make_image(base.format, plan.beneath);
  write_on(base, random());
  files->disks["base"] = base.top;
  return base.content;
}

Beginning begin_ours(const Plan& plan, Random& random) {
  Beginning it;
  it.plan = plan;
  it.content.resize(plan.bytes);
  const auto files = no_files();
  it.format = format_of("qcow2", files);
  if (plan.beneath) it.content = over(it.content, make_base(plan, files, random));
  if (plan.has_data_file())
    files->disks["data.raw"] = std::make_shared<SimDisk>("data.raw", 512, 512, false);
  it.format.options = plan.options;
  it.top = make_image(it.format, plan.bytes, plan.block_size, one_in(2, random));
  return it;
}

// --- images of qemu-img -----------------------------------------------------------------------

// A folder in which commands are run; what they say is a failure.
class Workshop {
 public:
  explicit Workshop(Random& random) : random_(random) {}

  Beginning begin(const Plan& plan) {
    if (plan.beneath) make_base(plan);
    make_top(plan);
    Beginning it;
    write_some(plan);
    const bool counts = plan.option("refcount_bits") != "1" && !(packed_ && plan.is_narrow());
    if (!plan.has_data_file() && counts && one_in(3, random_)) {
      it.snapshots["a"] = bytes();
      command("qemu-img snapshot -c a image");
      write_some(plan);
    }
    it.content = bytes();
    it.packed = packed_;
    it.plan = plan;
    const auto files = no_files();
    it.format = format_of("qcow2", files);
    it.top = load(folder_ / "image", plan.block_size);
    for (const std::string name : {"base", "deepest", "data.raw"})
      if (std::filesystem::exists(folder_ / name)) files->disks[name] = load(folder_ / name);
    return it;
  }

 private:
  void command(const std::string& words) {
    EXPECT_EQ(shell("cd " + (folder_ / "") + " && " + words), "") << words;
  }

  std::string compress(bool can) { return can && one_in(2, random_) ? " -c" : ""; }

  void make_base(const Plan& plan) {
    const std::string format = plan.option("backing_fmt");
    write_file(folder_ / "base", some_content(plan.beneath, random_));
    if (format == "raw") return;
    std::filesystem::rename(folder_ / "base", folder_ / "disk");
    std::string options;
    if (format == "qcow2") {
      write_file(folder_ / "deepest", some_content(plan.some_size(random_), random_));
      options = " -B deepest -F raw -o cluster_size=4k";
    }
    // Of a compressed qcow image qemu-img 7.2 makes all and returns 1 without a word.
    command("qemu-img convert -f raw -O " + format + compress(format != "vmdk") + options +
            " disk base" + (format == "qcow" ? " || true" : ""));
  }

  void make_top(const Plan& plan) {
    std::string options;
    for (const auto& [name, value] : plan.options)
      options += (options.empty() ? " -o " : ",") + name + "=" + value;
    if (one_in(2, random_)) {
      command("qemu-img create -q -f qcow2" + options + " image " + std::to_string(plan.bytes));
      return;
    }
    write_file(folder_ / "disk", some_content(plan.bytes, random_));
    const bool can_compress = !plan.has_data_file() && !plan.options.contains("preallocation");
    const std::string how = compress(can_compress);
    packed_ = !how.empty();
    command("qemu-img convert -f raw -O qcow2" + how + options + " disk image");
  }

  void write_some(const Plan& plan) {
    std::string words = "qemu-io -f qcow2";
    for (uint64_t i = 1 + random_() % 6; i > 0; i--) {
      const uint64_t sectors = plan.bytes / kSectorBytes, at = random_() % sectors;
      const uint64_t len = std::min(1 + random_() % 300, sectors - at);
      words += " -c '" +
               pick<std::string>(random_, {"write -q -P 7 ", "write -q -P 8 ", "write -q -z ",
                                           "write -q -zu ", "discard -q "}) +
               std::to_string(at * kSectorBytes) + " " + std::to_string(len * kSectorBytes) + "'";
    }
    command(words + " image");
  }

  Bytes bytes() {
    command("qemu-img convert -f qcow2 -O raw image disk");
    return read_file(folder_ / "disk");
  }

  const Folder folder_;
  Random& random_;
  bool packed_ = false;
};

Beginning copy_of(const Beginning& made) {
  Beginning copy = made;
  copy.top = made.top->copy();
  copy.format.files = std::make_shared<Files>(*made.format.files);
  for (auto& [name, disk] : copy.format.files->disks) disk = disk->copy();
  return copy;
}

// --- sequences --------------------------------------------------------------------------------

class Sequence {
 public:
  Sequence(Beginning it, uint64_t seed) : it_(std::move(it)), random_(seed) {}

  void play() {
    for (uint64_t sessions = 1 + random_() % 3; sessions > 0; sessions--) {
      write_on(it_, random_());
      for (uint64_t changes = random_() % 3; changes > 0; changes--) change();
    }
    judge();
  }

 private:
  void change() {
    using Action = SnapshotRequest::Action;
    if (it_.plan.has_data_file()) return;  // refused, and tested elsewhere
    const std::string name(1, static_cast<char>('a' + random_() % 3));
    const auto known = it_.snapshots.find(name);
    if (one_in(3, random_)) return resize_to(it_.plan.some_size(random_));
    if (known == it_.snapshots.end()) {
      if (snapshot_of(Action::create, name)) it_.snapshots[name] = it_.content;
    } else if (one_in(2, random_)) {
      if (snapshot_of(Action::apply, name)) it_.content = known->second;
    } else {
      EXPECT_TRUE(snapshot_of(Action::remove, name));
      it_.snapshots.erase(known);
    }
  }

  // Whether it was done.
  bool snapshot_of(SnapshotRequest::Action action, const std::string& name) {
    SnapshotRequest request;
    request.top = it_.top;
    request.action = action;
    request.name = name;
    const auto [code, sentence] = failure_of(snapshot(request));
    EXPECT_TRUE(code == 0 || (code == EOVERFLOW && may_count_too_much(action))) << sentence;
    return code == 0;
  }

  bool may_count_too_much(SnapshotRequest::Action action) const {
    const std::string bits = it_.plan.option("refcount_bits");
    const uint64_t most = bits == "1" ? 1 : bits == "2" ? 3 : bits == "4" ? 15 : 255;
    if (!it_.plan.is_narrow()) return false;
    if (it_.packed) return action != SnapshotRequest::Action::remove;
    return action == SnapshotRequest::Action::create && it_.snapshots.size() + 2 > most;
  }

  void resize_to(uint64_t bytes) {
    ResizeRequest request;
    request.top = it_.top;
    request.size = bytes;
    request.references = it_.format.files;
    const auto [code, sentence] = failure_of(qcow2::resize(request));
    const bool may_be_refused =
        it_.plan.is_old() && (!it_.snapshots.empty() || it_.plan.beneath > it_.content.size());
    EXPECT_TRUE(code == 0 || (code == ENOTSUP && may_be_refused)) << sentence;
    if (code == 0) it_.content.resize(bytes);
  }

  void judge() {
    const CheckResult result = check_of(it_.format, it_.top);
    EXPECT_EQ(result.errors + result.leaks, 0u) << result.findings.at(0);
    KernelModel after(opener(it_.format, it_.top, Durability::flush, true));
    run(after.attach());
    ASSERT_EQ(after.image().sectors() * kSectorBytes, it_.content.size());
    EXPECT_TRUE(run(after.read(0, after.image().sectors())) == it_.content);
    const Folder folder;
    save_all(it_.format, *it_.top, folder);
    EXPECT_EQ(judged_by_qemu(folder, "qcow2", true, it_.content, after.image()), "");
    if (!it_.snapshots.empty()) judge_snapshot(folder);
    run(after.detach());
    if (it_.plan.options.contains("data_file_raw")) {
      const SimDisk& data = *it_.format.files->disks.at("data.raw");
      EXPECT_TRUE(data.peek(0, it_.content.size()) == it_.content) << "the data file is another";
    }
  }

  // qemu-img reads it as long as the disk is now.
  void judge_snapshot(const Folder& folder) {
    const auto& [name, content] = *it_.snapshots.begin();
    EXPECT_EQ(
        shell("cd " + (folder / "") +
              " && qemu-img convert -f qcow2 -O raw -l snapshot.name=" + name + " image then"),
        "");
    Bytes found = read_file(folder / "then"), wanted = content;
    const size_t both = std::min(found.size(), wanted.size());
    found.resize(both);
    wanted.resize(both);
    EXPECT_TRUE(found == wanted) << "snapshot " << name << " has changed";
  }

  Beginning it_;
  Random random_;
};

std::string text_of(const Plan& plan) {
  std::string text = std::to_string(plan.bytes) + " bytes";
  for (const auto& [name, value] : plan.options) text += " " + name + "=" + value;
  if (plan.beneath) text += " over " + std::to_string(plan.beneath) + " bytes";
  return text + " in blocks of " + std::to_string(plan.block_size);
}

TEST(Qcow2Sequences, ARunIsOneFault) {
  GrowingFormat format = format_of("qcow2", no_files());
  for (const Options& options :
       {Options{}, Options{{"cluster_size", "4K"}}, Options{{"extended_l2", "on"}}}) {
    format.options = options;
    test_faults_of_a_full_image(format, 20 * kMiB);
  }
}

TEST(Qcow2Sequences, AnySequenceIsWhatQemuReads) {
  Beginning theirs;
  uint64_t made_for = 0;
  const Seeds wanted = seeds(60);
  for (uint64_t seed = wanted.first; seed < wanted.end(); seed++) {
    const bool ours = seed % 2;
    const uint64_t group = seed / 2 / kShared + 1;
    Random random(ours ? seed : group);
    const Plan plan = some_plan(random);
    SCOPED_TRACE(again(seed) + ": " + text_of(plan) + (ours ? "" : ", by qemu-img"));
    if (!ours && made_for != group) {
      Workshop workshop(random);
      theirs = workshop.begin(plan);
      made_for = group;
    }
    try {
      Sequence(ours ? begin_ours(plan, random) : copy_of(theirs), seed).play();
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace cowd::qcow2
