// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/sim/growing_world.hh"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "formats/common/bytes.hh"
#include "tests/sim/sequences.hh"

namespace cowd::sim {
namespace {

constexpr uint64_t kSectorBytes = 512, kMiB = 1 << 20;

// Remembers what an image says in the end, for it is gone then.
class Watched : public Image {
 public:
  Watched(std::unique_ptr<Image> image, std::shared_ptr<Lengths> used)
      : image_(std::move(image)), used_(std::move(used)) {}
  uint64_t sectors() const override { return image_->sectors(); }
  std::vector<Destination> destinations() const override { return image_->destinations(); }
  uint32_t discard_granularity() const override { return image_->discard_granularity(); }
  std::vector<Answer> initial() const override { return image_->initial(); }
  Task<std::vector<Answer>> resolve(Range range, Access access) override {
    return image_->resolve(range, access);
  }
  void promoted(const Promotion& promotion) override { image_->promoted(promotion); }
  Task<> commit(uint64_t seq, bool flushed) override { return image_->commit(seq, flushed); }
  Task<std::vector<Answer>> discard(Range range) override { return image_->discard(range); }
  Task<std::vector<Answer>> zero(Range range) override { return image_->zero(range); }
  Task<std::vector<MapEntry>> map(Range range) override { return image_->map(range); }
  Task<> preserve() override { return image_->preserve(); }
  Task<> close() override {
    co_await image_->close();
    *used_ = {image_->used_bytes(), image_->used_lengths()};
  }
  nlohmann::json stats() const override { return image_->stats(); }
  uint64_t used_bytes() const override { return image_->used_bytes(); }
  bool forgets_on_reattach() const override { return image_->forgets_on_reattach(); }

 private:
  std::unique_ptr<Image> image_;
  std::shared_ptr<Lengths> used_;
};

// What is found has what the guest wrote, for us and for qemu-img, and nothing is left over.
void expect_clean(const GrowingFormat& format, const std::shared_ptr<SimDisk>& top, Guest& guest) {
  const CheckResult result = check_of(format, top);
  EXPECT_EQ(result.errors, 0u) << result.findings.at(0);
  EXPECT_EQ(result.leaks, 0u) << result.findings.at(0);
  if (format.qemu_checks) {
    const std::string said = check_by_qemu(format, *top);
    EXPECT_NE(said.find("No errors were found"), std::string::npos) << said;
  }
  KernelModel after(opener(format, top, Durability::flush, true));
  run(after.attach());
  guest.use(after);
  run(guest.verify());
  // A discarded sector may have kept what it had: so what we read is what is compared.
  const Bytes ours = run(after.read(0, guest.sectors()));
  run(after.detach());
  Bytes theirs = raw_by_others(format, *top);
  EXPECT_GE(theirs.size(), ours.size());
  theirs.resize(ours.size());
  EXPECT_TRUE(theirs == ours) << "the judge reads something else";
}

// The n-th operation on one of the files fails; whether there were as many.
bool fail_nth(const GrowingFormat& format, uint64_t bytes, size_t which, uint64_t nth, int error,
              unsigned ops) {
  Life life(format, make_image(format, bytes), nth);
  give_room(format, *life.top);
  SimDisk& top = *life.disks().at(which);
  Random random(nth / 7);
  const auto insist = [&](auto step) {
    for (int tries = 0; tries < 3; tries++) {
      const int code = failure_of(step()).first;
      if (code == 0) return;
      EXPECT_EQ(code, error);
    }
    ADD_FAILURE() << "a step never succeeds";
  };
  top.fail(nth, error, ops);
  insist([&] { return life.kernel.attach(); });
  Guest guest(life.kernel, bytes / kSectorBytes, format.beneath);
  for (int i = 0; i < 4; i++) {
    const uint64_t sector = random() % (guest.sectors() - 300);
    const Range range{sector, 1 + random() % 300};
    insist([&] { return guest.write(range); });
    const Range last{guest.sectors() - 1 - random() % 3, 1};
    insist([&] { return guest.write(last); });
    // A kernel that was told of a failed flush has its bios written again by the guest.
    insist([&] { return i % 2 ? guest.flush() : life.kernel.timer(); });
  }
  const bool met = top.has_failed();
  insist([&] { return life.kernel.image().commit(~0ULL, false); });
  insist([&] { return guest.verify(); });
  insist([&] { return life.kernel.detach(); });
  top.fail(0, 0);
  life.cut();
  const CheckResult result = check_of(format, life.top);
  EXPECT_EQ(result.errors, 0u) << result.findings.at(0);
  EXPECT_TRUE(read_all(format, life.top) == guest.expected()) << "operation " << nth;
  return met;
}

void expect_survived(const GrowingFormat& format, const std::shared_ptr<SimDisk>& found,
                     const Guest& guest, uint64_t mark, bool go_on) {
  const CheckResult result = check_of(format, found);
  ASSERT_EQ(result.errors, 0u) << result.findings.at(0);
  give_room(format, *found);
  KernelModel after(opener(format, found));
  run(after.attach());
  run(guest.verify_crash(after, mark));
  if (!go_on) {
    run(after.detach());
    return;
  }
  // What is found must be of use, and its holes too: write on, and close.
  Guest more(after, guest.sectors(), run(after.read(0, guest.sectors())));
  run(more.write({1, guest.sectors() - 2}));
  run(more.verify());
  run(after.detach());
  const CheckResult again = check_of(format, found);
  EXPECT_EQ(again.errors, 0u) << again.findings.at(0);
  EXPECT_TRUE(read_all(format, found) == more.expected()) << "not what was written in the end";
}

}  // namespace

// --- real files -------------------------------------------------------------

Folder::Folder() {
  std::string name = (std::filesystem::temp_directory_path() / "cowd-test-XXXXXX").string();
  if (!mkdtemp(name.data())) throw std::runtime_error("no temporary folder");
  path_ = name;
}

Folder::~Folder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::vector<std::string> Folder::names() const {
  std::vector<std::string> all;
  for (const auto& each : std::filesystem::directory_iterator(path_))
    all.push_back(each.path().filename().string());
  return all;
}

void write_file(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  Bytes bytes(std::filesystem::file_size(path));
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!file) throw std::runtime_error("cannot read " + path);
  return bytes;
}

std::shared_ptr<SimDisk> load(const std::string& path, uint32_t block_size) {
  const Bytes bytes = read_file(path);
  auto disk =
      std::make_shared<SimDisk>(path, round_up(bytes.size(), block_size), block_size, false);
  disk->poke(0, bytes);
  return disk;
}

Bytes some_content(uint64_t bytes, Random& random) {
  Bytes content(bytes);
  for (uint64_t at = 0; at < bytes;) {
    const uint64_t len = std::min((1 + random() % 200) * kSectorBytes, bytes - at);
    const bool hole = random() % 3 == 0;
    for (uint64_t i = at; !hole && i < at + len; i += kSectorBytes)
      std::fill_n(content.begin() + static_cast<ptrdiff_t>(i), kSectorBytes, std::byte(random()));
    at += len;
  }
  return content;
}

void save(const SimDisk& disk, const std::string& path) {
  const Bytes bytes = disk.peek(0, disk.size());
  write_file(path, bytes);
}

std::string shell(const std::string& command) {
  FILE* pipe = popen(("exec 2>&1; " + command).c_str(), "r");
  if (!pipe) throw std::runtime_error("no shell");
  std::string output;
  std::array<char, 4096> some{};
  while (const size_t count = fread(some.data(), 1, some.size(), pipe))
    output.append(some.data(), count);
  const int status = pclose(pipe);
  if (status != 0) output += "\nexit " + std::to_string(WEXITSTATUS(status)) + "\n";
  return output;
}

void save_all(const GrowingFormat& format, const SimDisk& top, const Folder& folder) {
  save(top, folder / "image");
  if (!format.files) return;
  for (const auto& [name, disk] : format.files->disks) save(*disk, folder / name);
}

Bytes raw_by_others(const GrowingFormat& format, const SimDisk& disk) {
  const Folder folder;
  save_all(format, disk, folder);
  const std::string command = format.qemu == "vhdi"
                                  ? "/usr/bin/python3 tests/sim/vhdi-raw "
                                  : "qemu-img convert -f " + format.qemu + " -O raw ";
  const std::string said = shell(command + (folder / "image") + " " + (folder / "raw"));
  if (!said.empty()) throw std::runtime_error(said);
  return read_file(folder / "raw");
}

std::string check_by_qemu(const GrowingFormat& format, const SimDisk& disk) {
  const Folder folder;
  save_all(format, disk, folder);
  return shell("qemu-img check -f " + format.qemu + " " + (folder / "image"));
}

// --- images -----------------------------------------------------------------

std::vector<std::shared_ptr<SimDisk>> disks_of(const GrowingFormat& format,
                                               const std::shared_ptr<SimDisk>& top) {
  std::vector<std::shared_ptr<SimDisk>> all{top};
  if (format.files)
    for (const auto& [name, disk] : format.files->disks) all.push_back(disk);
  return all;
}

Life::Life(const GrowingFormat& its_format, std::shared_ptr<SimDisk> disk, uint64_t seed,
           Durability durability)
    : format(its_format),
      top(std::move(disk)),
      used(std::make_shared<Lengths>()),
      kernel(opener(format, top, durability, false, used), seed) {}

void Life::attach() {
  give_room(format, *top);
  run(kernel.attach());
}

void Life::detach() {
  run(kernel.detach());
  cut();
}

void Life::cut() {
  if (used->top != 0) top->set_size(round_up(used->top, top->block_size()));
  for (const auto& disk : disks())
    for (const Image::Length& each : used->others)
      if (each.disk == disk.get()) disk->set_size(round_up(each.bytes, disk->block_size()));
}

std::shared_ptr<SimDisk> make_image(const GrowingFormat& format, uint64_t bytes,
                                    uint32_t block_size, bool garbage) {
  auto top = std::make_shared<SimDisk>("image", 0, block_size, garbage);
  CreateRequest request;
  request.top = top;
  request.size = bytes;
  request.options = format.options;
  request.references = format.files;
  if (format.files) {
    request.force = true;  // over the files of an image before it
    if (!format.beneath.empty()) request.size = 0;
  }
  run(format.create(request));
  return top;
}

KernelModel::Open opener(const GrowingFormat& format, std::shared_ptr<SimDisk> top,
                         Durability durability, bool read_only, std::shared_ptr<Lengths> used) {
  if (!used) used = std::make_shared<Lengths>();
  const auto open_it = format.open;
  const auto files = format.files;
  return [=](bool reattach, KernelModel::Invalidate invalidate) -> Task<std::unique_ptr<Image>> {
    OpenRequest request;
    request.top = top;
    request.durability = durability;
    request.read_only = read_only;
    request.reattach = reattach;
    request.invalidate = invalidate;
    request.references = files;
    std::unique_ptr<Image> image = co_await open_it(std::move(request));
    co_return std::make_unique<Watched>(std::move(image), used);
  };
}

void give_room(const GrowingFormat& format, SimDisk& top) {
  const std::shared_ptr<Disk> same(std::shared_ptr<void>(), &top);
  const uint64_t bytes = run(format.room(same));
  if (bytes > top.size()) top.set_size(round_up(bytes, top.block_size()));
}

CheckResult check_of(const GrowingFormat& format, std::shared_ptr<Disk> top, bool repair) {
  CheckRequest request;
  request.top = std::move(top);
  request.repair = repair;
  request.references = format.files;
  return run(format.check(request));
}

Bytes read_all(const GrowingFormat& format, std::shared_ptr<SimDisk> top) {
  KernelModel kernel(opener(format, top, Durability::flush, true));
  for (const auto& disk : disks_of(format, top)) disk->reset_counts();
  run(kernel.attach());
  Bytes all = run(kernel.read(0, kernel.image().sectors()));
  run(kernel.detach());
  for (const auto& disk : disks_of(format, top))
    EXPECT_EQ(disk->counts().writes, 0u) << "what is only read was written to";
  return all;
}

Task<> play(Guest& guest, KernelModel& kernel, Random& random, Range part, int steps,
            uint64_t unit) {
  uint64_t next = part.sector;  // of a sequential writer
  for (int i = 0; i < steps; i++) {
    const uint64_t sector = part.sector + random() % part.len / unit * unit;
    const uint64_t longest = std::min<uint64_t>(part.end() - sector, 300);
    const Range range{sector, round_up(1 + random() % longest, unit)};
    switch (random() % 14) {
      case 0: co_await guest.flush(); break;
      case 1: co_await kernel.timer(); break;
      case 2: kernel.forget(); break;
      case 3: co_await guest.zero(range); break;
      case 4: co_await guest.discard(range); break;
      case 5:
      case 6: co_await guest.verify(range); break;
      case 7:
      case 8:
      case 9: {
        const Range on{next, std::min<uint64_t>(part.end() - next, 128)};
        co_await guest.write(on);
        next = on.end() == part.end() ? part.sector : on.end();
        break;
      }
      default: co_await guest.write(range);
    }
  }
}

void play_session(Life& life, Guest& guest, Random& random) {
  const uint64_t unit = life.top->block_size() / kSectorBytes;
  const Range all{0, guest.sectors()};
  run(play(guest, life.kernel, random, all, 6, unit));
  if (random() % 4 == 0) run(life.kernel.reattach());
  for (const auto& disk : life.disks()) disk->delay(random(), 5);
  const uint64_t half = round_down(guest.sectors() / 2, unit);
  std::vector<Task<>> tasks;
  for (const Range part : {Range{0, half}, Range{half, guest.sectors() - half}})
    if (part.len) tasks.push_back(play(guest, life.kernel, random, part, 6, unit));
  run_all(std::move(tasks));
  for (const auto& disk : life.disks()) disk->delay(random(), 0);
  run(guest.verify());
}

void test_sequences(const GrowingFormat& format, uint64_t wanted, uint64_t seeds) {
  for (uint64_t seed = 1; seed <= seeds; seed++) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const uint32_t block_size = format.large && seed % 3 == 2 ? 4096 : 512;
    const uint64_t unit = block_size / kSectorBytes;
    const uint64_t bytes = round_down(wanted, block_size);
    const auto durability = seed % 4 ? Durability::flush : Durability::always;
    Life life(format, make_image(format, bytes, block_size, seed % 2), seed, durability);
    Random random(seed);
    life.attach();
    Guest guest(life.kernel, bytes / kSectorBytes, format.beneath);
    run(play(guest, life.kernel, random, {0, guest.sectors()}, 30, unit));
    run(life.kernel.reattach());
    run(play(guest, life.kernel, random, {0, guest.sectors()}, 10, unit));
    for (const auto& disk : life.disks()) disk->delay(seed, 5);
    const uint64_t part = round_down(guest.sectors() / 4, unit);
    std::vector<Task<>> tasks;
    for (uint64_t i = 0; i < 4; i++) {
      const uint64_t end = i == 3 ? guest.sectors() : (i + 1) * part;
      tasks.push_back(play(guest, life.kernel, random, {i * part, end - i * part}, 20, unit));
    }
    run_all(std::move(tasks));
    for (const auto& disk : life.disks()) disk->delay(seed, 0);
    run(guest.verify());
    life.detach();
    expect_clean(format, life.top, guest);
    guest.use(life.kernel);
    // A second life, after which the first one's data is still there.
    life.attach();
    run(play(guest, life.kernel, random, {0, guest.sectors()}, 15, unit));
    run(guest.verify());
    life.detach();
    expect_clean(format, life.top, guest);
    EXPECT_FALSE(life.top->buffer_changed());
    if (testing::Test::HasFailure()) return;
  }
}

namespace {

// All files as they may be found if the power goes at that moment.
std::pair<GrowingFormat, std::shared_ptr<SimDisk>> crashed(const Life& life, uint64_t time,
                                                           Survives survives, Random& random) {
  GrowingFormat format = life.format;
  const auto after = [&](const SimDisk& disk) {
    return disk.crash(disk.events_before(time), survives, random);
  };
  if (format.files) {
    format.files = std::make_shared<Files>(*format.files);
    for (auto& [name, disk] : format.files->disks) disk = after(*disk);
  }
  return {format, after(*life.top)};
}

// Before each event of any file, and at the end.
std::vector<uint64_t> moments_of(const Life& life) {
  std::vector<uint64_t> moments{UINT64_MAX};
  for (const auto& disk : life.disks())
    for (const Event& event : disk->log()) moments.push_back(event.time);
  std::ranges::sort(moments);
  return moments;
}

uint64_t mark_before(const SimDisk& disk, uint64_t time) {
  uint64_t mark = 0;
  for (const Event& event : disk.log())
    if (event.kind == Event::Kind::mark && event.time < time) mark = event.id;
  return mark;
}

}  // namespace

void test_crashes(const GrowingFormat& format, uint64_t bytes, uint64_t otherwise, int steps) {
  const Seeds wanted = crash_seeds(otherwise);
  for (uint64_t seed = wanted.first; seed < wanted.end(); seed++) {
    Life life(format, make_image(format, bytes, 512, true), seed);
    Random random(seed);
    give_room(format, *life.top);
    for (const auto& disk : life.disks()) disk->record();
    life.attach();
    Guest guest(life.kernel, bytes / kSectorBytes, format.beneath);
    guest.mark_in(*life.top);
    run(play(guest, life.kernel, random, {0, guest.sectors()}, steps));
    run(life.kernel.reattach());
    std::vector<Task<>> tasks;
    const uint64_t half = guest.sectors() / 2;
    for (const auto& disk : life.disks()) disk->delay(seed, 4);
    tasks.push_back(play(guest, life.kernel, random, {0, half}, steps / 2));
    tasks.push_back(play(guest, life.kernel, random, {half, guest.sectors() - half}, steps / 2));
    run_all(std::move(tasks));
    run(life.kernel.detach());
    for (const uint64_t time : moments_of(life))
      for (const Survives survives :
           {Survives::nothing, Survives::everything, Survives::anything}) {
        SCOPED_TRACE(again(seed, "COWD_CRASHES") + ", event " + std::to_string(time));
        const auto [found, top] = crashed(life, time, survives, random);
        expect_survived(found, top, guest, mark_before(*life.top, time), time % 5 == 0);
        if (testing::Test::HasFailure()) return;
      }
  }
}

void test_faults(const GrowingFormat& format, uint64_t bytes) {
  const size_t disks = disks_of(format, make_image(format, bytes)).size();
  for (const unsigned ops : {SimDisk::kRead, SimDisk::kWrite, SimDisk::kFlush})
    for (const int error : {EIO, ENOSPC}) {
      uint64_t failed = 0;
      for (size_t which = 0; which < disks; which++) {
        uint64_t nth = 1;
        while (fail_nth(format, bytes, which, nth, error, ops)) {
          failed++;
          ASSERT_LT(++nth, 500u);
          if (testing::Test::HasFailure()) {
            ADD_FAILURE() << "operation " << nth - 1 << " of kind " << ops << ", file " << which;
            return;
          }
        }
      }
      EXPECT_GT(failed, 0u);
    }
}

namespace {

// One write to each of the last blocks, of which every second is committed; then the host dies.
void leave_holes(Life& life, uint64_t block) {
  const uint64_t blocks = life.kernel.image().sectors() / block;
  Guest guest(life.kernel, life.kernel.image().sectors(), life.format.beneath);
  for (uint64_t i = blocks - 6; i < blocks; i++) {
    const Range range{i * block, 1};
    if (i % 2 == 0) {
      // Given, and never used.
      run(life.kernel.image().resolve(range, Access::write));
    } else {
      run(guest.write(range));
      run(guest.flush());
    }
  }
  life.kernel.die();
}

}  // namespace

void test_holes(const GrowingFormat& format, uint64_t bytes) {
  const auto top = make_image(format, bytes);
  Life life(format, top, 1);
  life.attach();
  const uint64_t block = run(opener(format, top)(false, nullptr))->stats()["block_sectors"];
  leave_holes(life, block);
  life.attach();
  const auto stats = life.kernel.image().stats();
  EXPECT_GE(stats["holes"], 2);
  const uint64_t used = stats["used_bytes"];
  Guest guest(life.kernel, life.kernel.image().sectors(),
              run(life.kernel.read(0, life.kernel.image().sectors())));
  const uint64_t last = guest.sectors() / block;
  run(guest.write({(last - 6) * block, 1}));
  run(guest.write({(last - 4) * block, 1}));
  run(guest.flush());
  EXPECT_EQ(life.kernel.image().stats()["used_bytes"], used) << "the file has grown";
  run(guest.verify());
  life.detach();
  expect_clean(format, top, guest);
}

void test_length(const GrowingFormat& format, uint64_t bytes) {
  Life life(format, make_image(format, bytes), 1);
  life.attach();
  const uint64_t block = life.kernel.image().stats()["block_sectors"];
  Guest guest(life.kernel, bytes / kSectorBytes, format.beneath);
  for (uint64_t at = 0; at < guest.sectors(); at += 2 * block) run(guest.write({at, 1}));
  life.detach();
  EXPECT_TRUE(read_all(format, life.top) == guest.expected());
  std::vector<const Disk*> grown;
  if (life.used->top != 0) grown.push_back(life.top.get());
  for (const Image::Length& each : life.used->others) grown.push_back(each.disk);
  EXPECT_FALSE(grown.empty());
  // With one block less there is not all of it. A VHD has its footer behind that.
  const bool has_footer = format.qemu == "vpc" || format.qemu == "vhdi";
  for (const auto& disk : life.disks()) {
    if (std::ranges::count(grown, disk.get()) == 0) continue;
    const Bytes whole = disk->peek(0, disk->size());
    disk->set_size(disk->size() - block * kSectorBytes);
    if (has_footer) disk->poke(disk->size() - kSectorBytes, std::span(whole).last(kSectorBytes));
    EXPECT_GT(check_of(format, life.top).errors, 0u) << disk->name();
    disk->set_size(whole.size());
    disk->poke(0, whole);
  }
  EXPECT_EQ(check_of(format, life.top).errors, 0u);
}

namespace {

uint64_t runs_of(Image& image) {
  uint64_t runs = 0;
  MapEntry last;
  for (const MapEntry& each : run(image.map({0, image.sectors()}))) {
    const bool goes_on = runs != 0 && each.disk == last.disk &&
                         each.offset == last.offset + last.range.len * kSectorBytes;
    if (!goes_on) runs++;
    last = each;
  }
  return runs;
}

}  // namespace

void test_faults_of_a_full_image(const GrowingFormat& format, uint64_t bytes) {
  for (const uint64_t step : {1, 3}) {  // blocks; a disk in one run, or in many
    Life life(format, make_image(format, bytes), 1);
    life.attach();
    Guest guest(life.kernel, bytes / kSectorBytes, format.beneath);
    const uint64_t block = kMiB / 16 / kSectorBytes;
    for (uint64_t first = 0; first < step; first++)
      for (uint64_t at = first * block; at < guest.sectors(); at += step * block)
        run(guest.write({at, std::min(block, guest.sectors() - at)}));
    life.detach();
    life.attach();
    const uint64_t runs = runs_of(life.kernel.image()), begun = life.kernel.faults();
    run(guest.verify());
    const uint64_t read = life.kernel.faults();
    EXPECT_LE(read - begun, runs);
    for (const uint64_t pass : {1, 2}) {
      for (uint64_t at = 0; at < guest.sectors(); at += 200)
        run(guest.write({at, std::min<uint64_t>(200, guest.sectors() - at)}));
      run(guest.verify());
      EXPECT_LE(life.kernel.faults() - read, runs) << "pass " << pass;
    }
    const uint64_t after = life.kernel.faults();
    run(guest.write({1, guest.sectors() - 2}));
    run(guest.verify());
    EXPECT_EQ(life.kernel.faults(), after);
    life.detach();
  }
}

void test_adopted(const GrowingFormat& format, uint64_t bytes) {
  const auto top = make_image(format, bytes);
  give_room(format, *top);
  const auto open_it = opener(format, top);
  auto image = run(open_it(false, nullptr));
  const uint64_t block = image->stats()["block_sectors"];
  const auto answers = run(image->resolve({0, block}, Access::write));
  const Extent given = std::get<Extent>(answers.front());
  image = run(open_it(true, nullptr));
  const Promotion told{{0, block}, given.write.dest, given.write.sector, 1, false};
  image->promoted(told);
  run(image->commit(1, true));
  const auto found = run(image->resolve({0, 8}, Access::read));
  EXPECT_EQ(std::get<Extent>(found.front()).read, given.write);
  // From the first question on, nobody else gives anything.
  const Promotion wrong{
      {block, block}, given.write.dest, given.write.sector + 64 * block, 2, false};
  image->promoted(wrong);
  EXPECT_EQ(failure_of(image->commit(2, true)).first, EIO);
}

// The block that the end of the disk cuts is filled here, and the kernel tells of what is written.
void test_told_in_parts(const GrowingFormat& format, uint64_t bytes) {
  const auto top = make_image(format, bytes);
  give_room(format, *top);
  auto image = run(opener(format, top)(false, nullptr));
  const uint64_t last = image->sectors() - 2;
  const auto answers = run(image->resolve({last, 2}, Access::write));
  const Extent given = std::get<Extent>(answers.front());
  const uint64_t place = given.write.sector + last - given.range.sector;
  for (uint64_t i = 0; i < 2; i++) {
    image->promoted({{last + i, 1}, given.write.dest, place + i, i + 1, false});
    run(image->commit(i + 1, true));
  }
  const auto found = run(image->resolve({last, 2}, Access::read));
  EXPECT_EQ(std::get<Extent>(found.front()).read, Side::at(given.write.dest, place));
}

void test_foreign(const GrowingFormat& format, const std::string& create_options, uint64_t bytes,
                  bool writable) {
  const Folder folder;
  const std::string image = folder / "image", raw = folder / "raw";
  shell("qemu-img create -q -f raw " + raw + " " + std::to_string(bytes));
  Random random(bytes);
  for (int i = 0; i < 12; i++) {
    const uint64_t at = random() % (bytes / 65536) * 65536 + random() % 8 * 512;
    const uint64_t len = std::min<uint64_t>((1 + random() % 300) * 512, bytes - at);
    shell("qemu-io -f raw -c 'write -q -P " + std::to_string(1 + i) + " " + std::to_string(at) +
          " " + std::to_string(len) + "' " + raw);
  }
  const std::string said = shell("qemu-img convert -f raw -O " + format.qemu + " " +
                                 create_options + " " + raw + " " + image);
  // Of a compressed qcow image qemu-img 7.2 makes all and returns 1 without a word.
  ASSERT_TRUE(said.empty() || (format.qemu == "qcow" && said == "\nexit 1\n")) << said;
  auto top = load(image);
  Bytes expected = raw_by_others(format, *top);
  EXPECT_GT(std::ranges::count_if(expected, [](std::byte each) { return each != std::byte{}; }),
            1000);
  Bytes found = read_all(format, top);
  ASSERT_GE(found.size(), expected.size());
  expected.resize(found.size());
  ASSERT_TRUE(found == expected) << "we read something else than qemu-img";
  EXPECT_EQ(check_of(format, top).errors, 0u);
  if (!writable) return;
  Life life(format, top, 1);
  life.attach();
  Guest guest(life.kernel, expected.size() / kSectorBytes, expected);
  run(play(guest, life.kernel, random, {0, guest.sectors()}, 60));
  run(guest.verify());
  life.detach();
  expect_clean(format, life.top, guest);
}

}  // namespace cowd::sim
