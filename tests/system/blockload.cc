// SPDX-License-Identifier: GPL-2.0-or-later
// Verified write load on a device or file.
//
//   blockload fill   TARGET STATE --bytes N        version 1 of every sector, then fsync
//   blockload load   TARGET STATE --bytes N ...    random writes, reads, syncs, until
//                                                  --ops are done or SIGTERM comes
//                                                  (--errors 1: over a disk that fails)
//   blockload verify TARGET STATE                  every sector is what STATE says
//
// STATE is a file with the version of each sector that was last acknowledged. Several
// writers share the target in stripes, so that a granule larger than a stripe has
// several writers. Any error, and any sector that is not the version acknowledged
// last, ends the program with status 1 and a sentence. With --errors 1 a load goes on
// after EIO: of a write that failed each sector may be old or new, but is the same from
// the first time on that it is read; by SIGTERM the disk has to be good again, and then
// all that was written and what became of the rest is read once more, and synced.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "tests/system/pattern.hh"

namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kStripe = 32;  // sectors
constexpr size_t kChunk = 1 << 20;

std::atomic<bool> stop_asked = false;

struct Settings {
  std::string target, state;
  uint64_t bytes = 0;
  uint64_t offset = 0;
  unsigned writers = 4;
  uint64_t seed = 1;
  uint64_t ops = 0;  // of each writer; 0: until SIGTERM
  unsigned sync_every = 16;
  bool errors = false;
};

// Of the disk, where --errors permits it.
struct DiskError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

[[noreturn]] void fail_errno(const std::string& what) {
  const int error = errno;
  const std::string whole = what + ": " + strerror(error);
  if (error == EIO) throw DiskError(whole);
  fail(whole);
}

struct Buffer {
  explicit Buffer(size_t size) : bytes(static_cast<std::byte*>(aligned_alloc(4096, size)), free) {}
  std::byte* get() { return bytes.get(); }
  std::unique_ptr<std::byte, decltype(&free)> bytes;
};

// The versions of all sectors. Each writer touches its own sectors only.
struct State {
  uint64_t seed = 0;
  std::vector<uint32_t> versions;

  void load(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    uint64_t count = 0;
    in.read(reinterpret_cast<char*>(&seed), sizeof seed);
    in.read(reinterpret_cast<char*>(&count), sizeof count);
    versions.resize(count);
    in.read(reinterpret_cast<char*>(versions.data()),
            static_cast<std::streamsize>(count * sizeof(uint32_t)));
    if (!in) fail(path + " is no state of blockload");
  }

  void save(const std::string& path) const {
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    const uint64_t count = versions.size();
    out.write(reinterpret_cast<const char*>(&seed), sizeof seed);
    out.write(reinterpret_cast<const char*>(&count), sizeof count);
    out.write(reinterpret_cast<const char*>(versions.data()),
              static_cast<std::streamsize>(count * sizeof(uint32_t)));
    out.close();
    if (!out) fail("writing " + path + " failed");
  }
};

class Target {
 public:
  Target(const Settings& settings, const State& state) : settings_(settings), state_(state) {
    fd_ = open(settings.target.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC);
    if (fd_ < 0) fail_errno("opening " + settings.target);
  }
  ~Target() { close(fd_); }
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  void write(uint64_t sector, uint64_t count, const std::byte* from) const {
    const auto want = static_cast<ssize_t>(count * kSector);
    const ssize_t did = pwrite(fd_, from, count * kSector, at(sector));
    if (did < 0) fail_errno("writing " + where(sector, count));
    if (did != want)
      fail("writing " + where(sector, count) + " was short: " + std::to_string(did) + " bytes");
  }

  void read(uint64_t sector, uint64_t count, std::byte* buffer) const {
    const auto want = static_cast<ssize_t>(count * kSector);
    const ssize_t did = pread(fd_, buffer, count * kSector, at(sector));
    if (did < 0) fail_errno("reading " + where(sector, count));
    if (did != want)
      fail("reading " + where(sector, count) + " was short: " + std::to_string(did) + " bytes");
  }

  void check(uint64_t sector, uint64_t count, std::byte* buffer) const {
    read(sector, count, buffer);
    for (uint64_t i = 0; i < count; i++) {
      const std::byte* found = buffer + i * kSector;
      const uint32_t version = state_.versions[sector + i];
      if (!is_sector(found, sector + i, version, state_.seed))
        fail("sector " + std::to_string(sector + i) + " should be version " +
             std::to_string(version) + " and is " + describe_sector(found));
    }
  }

  void sync() const {
    if (fdatasync(fd_) < 0) fail_errno("fdatasync of " + settings_.target);
  }

 private:
  off_t at(uint64_t sector) const {
    return static_cast<off_t>(settings_.offset + sector * kSector);
  }
  std::string where(uint64_t sector, uint64_t count) const {
    return std::to_string(count) + " sectors from " + std::to_string(sector) + " of " +
           settings_.target;
  }

  const Settings& settings_;
  const State& state_;
  int fd_;
};

struct Totals {
  uint64_t writes = 0, reads = 0, syncs = 0;
  uint64_t failed_writes = 0, failed_reads = 0, failed_syncs = 0;
  Clock::duration slowest{};
};

class Writer {
 public:
  Writer(const Settings& settings, State& state, const Target& target, unsigned number)
      : settings_(settings),
        state_(state),
        target_(target),
        number_(number),
        random_(settings.seed * 1000 + number),
        buffer_(kStripe * kSector) {}

  Totals run() {
    for (uint64_t op = 0; !stop_asked && (!settings_.ops || op < settings_.ops); op++) {
      const auto began = Clock::now();
      step();
      totals_.slowest = std::max(totals_.slowest, Clock::now() - began);
    }
    while (!doubts_.empty()) check(doubts_.begin()->first, 1);
    target_.sync();
    return totals_;
  }

 private:
  uint64_t below(uint64_t limit) {
    return std::uniform_int_distribution<uint64_t>(0, limit - 1)(random_);
  }

  // A random run in one of our stripes.
  void choose(uint64_t* sector, uint64_t* count) {
    const uint64_t stripes = state_.versions.size() / kStripe / settings_.writers;
    const uint64_t stripe = below(stripes) * settings_.writers + number_;
    // Often aligned and of 4 KiB, as file systems write.
    if (below(2)) {
      *sector = stripe * kStripe + below(kStripe / 8) * 8;
      *count = 8;
      return;
    }
    const uint64_t first = below(kStripe);
    *sector = stripe * kStripe + first;
    *count = 1 + below(kStripe - first);
  }

  void step() {
    uint64_t sector, count;
    choose(&sector, &count);
    if (below(4) == 0) {
      attempt(totals_.reads, totals_.failed_reads, [&] { check(sector, count); });
      return;
    }
    attempt(totals_.writes, totals_.failed_writes, [&] { write(sector, count); });
    if (below(4) == 0) attempt(totals_.reads, totals_.failed_reads, [&] { check(sector, count); });
    if (below(settings_.sync_every) == 0)
      attempt(totals_.syncs, totals_.failed_syncs, [&] { target_.sync(); });
  }

  template <typename Operation>
  void attempt(uint64_t& done, uint64_t& failed, Operation operation) {
    try {
      operation();
      done++;
    } catch (const DiskError&) {
      if (!settings_.errors) throw;
      failed++;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));  // a bad disk fails fast
    }
  }

  void check(uint64_t sector, uint64_t count) {
    if (doubts_.empty()) return target_.check(sector, count, buffer_.get());
    target_.read(sector, count, buffer_.get());
    for (uint64_t i = 0; i < count; i++) settle(sector + i, buffer_.get() + i * kSector);
    target_.check(sector, count, buffer_.get());
  }

  // What is read of a sector whose writes failed is what it is from now on.
  void settle(uint64_t sector, const std::byte* found) {
    const auto doubt = doubts_.find(sector);
    if (doubt == doubts_.end()) return;
    for (const uint32_t version : doubt->second)
      if (is_sector(found, sector, version, state_.seed)) state_.versions[sector] = version;
    if (!is_sector(found, sector, state_.versions[sector], state_.seed))
      fail("sector " + std::to_string(sector) +
           " is none of what was written there: " + describe_sector(found));
    doubts_.erase(doubt);
  }

  void write(uint64_t sector, uint64_t count) {
    const uint32_t version = next_version_++;
    for (uint64_t i = 0; i < count; i++)
      fill_sector(buffer_.get() + i * kSector, sector + i, version, state_.seed);
    try {
      target_.write(sector, count, buffer_.get());
    } catch (const DiskError&) {
      for (uint64_t i = 0; i < count; i++) doubts_[sector + i].push_back(version);
      throw;
    }
    for (uint64_t i = 0; i < count; i++) {
      state_.versions[sector + i] = version;
      doubts_.erase(sector + i);
    }
  }

  const Settings& settings_;
  State& state_;
  const Target& target_;
  const unsigned number_;
  std::mt19937_64 random_;
  Buffer buffer_;
  uint32_t next_version_ = 2;
  std::map<uint64_t, std::vector<uint32_t>> doubts_;  // what was tried to write and failed
  Totals totals_;
};

void fill(const Settings& settings) {
  State state{settings.seed, std::vector<uint32_t>(settings.bytes / kSector, 1)};
  const Target target(settings, state);
  Buffer buffer(kChunk);
  for (uint64_t sector = 0; sector < state.versions.size(); sector += kChunk / kSector) {
    const uint64_t count = std::min<uint64_t>(kChunk / kSector, state.versions.size() - sector);
    for (uint64_t i = 0; i < count; i++)
      fill_sector(buffer.get() + i * kSector, sector + i, 1, state.seed);
    target.write(sector, count, buffer.get());
  }
  target.sync();
  state.save(settings.state);
}

void verify(const Settings& settings) {
  State state;
  state.load(settings.state);
  const Target target(settings, state);
  Buffer buffer(kChunk);
  for (uint64_t sector = 0; sector < state.versions.size(); sector += kChunk / kSector)
    target.check(sector, std::min<uint64_t>(kChunk / kSector, state.versions.size() - sector),
                 buffer.get());
  printf("%zu MiB are what was written last\n", state.versions.size() * kSector >> 20);
}

void load(const Settings& settings) {
  State state;
  if (access(settings.state.c_str(), F_OK) == 0)
    state.load(settings.state);
  else
    state = {settings.seed, std::vector<uint32_t>(settings.bytes / kSector, 0)};
  const Target target(settings, state);
  std::mutex mutex;
  Totals sum;
  std::string problem;
  std::vector<std::thread> threads;
  for (unsigned number = 0; number < settings.writers; number++)
    threads.emplace_back([&, number] {
      try {
        const Totals mine = Writer(settings, state, target, number).run();
        const std::lock_guard lock(mutex);
        sum.writes += mine.writes;
        sum.reads += mine.reads;
        sum.syncs += mine.syncs;
        sum.failed_writes += mine.failed_writes;
        sum.failed_reads += mine.failed_reads;
        sum.failed_syncs += mine.failed_syncs;
        sum.slowest = std::max(sum.slowest, mine.slowest);
      } catch (const std::exception& error) {
        const std::lock_guard lock(mutex);
        if (problem.empty()) problem = error.what();
        stop_asked = true;
      }
    });
  for (auto& thread : threads) thread.join();
  if (!problem.empty()) fail(problem);
  state.save(settings.state);
  std::string errors = "no error";
  if (settings.errors)
    errors = std::to_string(sum.failed_writes) + " writes, " + std::to_string(sum.failed_reads) +
             " reads and " + std::to_string(sum.failed_syncs) + " syncs failed";
  printf("%lu writes, %lu verified reads, %lu syncs, %s; the slowest took %lld ms\n", sum.writes,
         sum.reads, sum.syncs, errors.c_str(),
         static_cast<long long>(
             std::chrono::duration_cast<std::chrono::milliseconds>(sum.slowest).count()));
}

Settings parse(int argc, char** argv) {
  if (argc < 4)
    fail(
        "usage: blockload fill|load|verify TARGET STATE [--bytes N] [--offset N] [--writers N] "
        "[--seed N] [--ops N] [--sync-every N] [--errors 1]");
  Settings settings;
  settings.target = argv[2];
  settings.state = argv[3];
  std::map<std::string, uint64_t> numbers;
  for (int i = 4; i + 1 < argc; i += 2) numbers[argv[i]] = strtoull(argv[i + 1], nullptr, 0);
  for (const auto& [name, value] : numbers) {
    if (name == "--bytes")
      settings.bytes = value;
    else if (name == "--offset")
      settings.offset = value;
    else if (name == "--writers")
      settings.writers = static_cast<unsigned>(value);
    else if (name == "--seed")
      settings.seed = value;
    else if (name == "--ops")
      settings.ops = value;
    else if (name == "--sync-every")
      settings.sync_every = static_cast<unsigned>(value);
    else if (name == "--errors")
      settings.errors = value;
    else
      fail("there is no option " + name);
  }
  return settings;
}

}  // namespace

int main(int argc, char** argv) {
  signal(SIGTERM, [](int) { stop_asked = true; });
  try {
    const Settings settings = parse(argc, argv);
    const std::string command = argv[1];
    if (command == "fill")
      fill(settings);
    else if (command == "load")
      load(settings);
    else if (command == "verify")
      verify(settings);
    else
      fail("there is no command " + command);
  } catch (const std::exception& error) {
    fprintf(stderr, "blockload: %s\n", error.what());
    return 1;
  }
  return 0;
}
