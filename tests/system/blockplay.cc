// SPDX-License-Identifier: GPL-2.0-or-later
// A random sequence of a guest's operations on a device.
//
//   blockplay DEVICE CONTENTS SEED OPS
//
// CONTENTS is a file as long as the device with what must be on it; at the end it is what the
// operations have made of that, and all of the device has been compared with it. Writes and zeroes
// of any length come several at once, next to each other as well; then there are reads, discards
// and flushes. What is wrong ends the program with status 1 and a sentence.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr uint64_t kSector = 512;
constexpr uint64_t kMostSectors = 1024;  // of one operation
constexpr uint64_t kMostAtOnce = 6;

using Bytes = std::vector<std::byte>;

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

[[noreturn]] void fail_errno(const std::string& what) {
  const int error = errno;
  fail(what + ": " + strerror(error));
}

struct Run {
  uint64_t offset, length;  // bytes
  std::string text() const {
    return std::to_string(length) + " bytes at " + std::to_string(offset);
  }
};

struct Aligned {
  explicit Aligned(size_t size)
      : bytes(static_cast<std::byte*>(aligned_alloc(4096, (size + 4095) / 4096 * 4096)), free) {}
  std::byte* get() { return bytes.get(); }
  std::unique_ptr<std::byte, decltype(&free)> bytes;
};

class Player {
 public:
  Player(std::string device, Bytes contents, uint64_t seed)
      : device_(std::move(device)), contents_(std::move(contents)), random_(seed) {
    fd_ = open(device_.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC);
    if (fd_ < 0) fail_errno("opening " + device_);
    uint64_t size = 0;
    if (ioctl(fd_, BLKGETSIZE64, &size) < 0) fail_errno("the size of " + device_);
    if (size != contents_.size())
      fail(device_ + " has " + std::to_string(size) + " bytes, not " +
           std::to_string(contents_.size()));
  }
  ~Player() { close(fd_); }
  Player(const Player&) = delete;
  Player& operator=(const Player&) = delete;

  void play(uint64_t ops) {
    verify();
    for (uint64_t op = 0; op < ops; op++) step();
    verify();
  }

  const Bytes& contents() const { return contents_; }

 private:
  struct Change {
    Run run;
    bool zero;
    std::byte value;
  };

  uint64_t below(uint64_t limit) {
    return std::uniform_int_distribution<uint64_t>(0, limit - 1)(random_);
  }

  Run any_run() {
    const uint64_t sectors = contents_.size() / kSector;
    const uint64_t first = below(sectors);
    const uint64_t most = std::min(sectors - first, below(3) ? 16 : kMostSectors);
    return {first * kSector, (1 + below(most)) * kSector};
  }

  void step() {
    switch (below(10)) {
      case 0: return discard(any_run());
      case 1:
        if (fdatasync(fd_) < 0) fail_errno("fdatasync of " + device_);
        return;
      case 2:
      case 3: return check(any_run());
      default: return change();
    }
  }

  // Runs next to each other, with or without a gap, written at the same time.
  void change() {
    std::vector<Change> changes;
    Run next = any_run();
    for (uint64_t left = 1 + below(kMostAtOnce); left; left--) {
      next.length = std::min(next.length, contents_.size() - next.offset);
      changes.push_back({next, below(6) == 0, std::byte(1 + below(255))});
      next.offset += next.length + below(3) * 4 * kSector;
      if (next.offset >= contents_.size()) break;
      next.length = (1 + below(32)) * kSector;
    }
    std::vector<std::thread> threads;
    for (const Change& each : changes)
      threads.emplace_back([this, &each] { keep_failure([&] { write(each); }); });
    for (std::thread& thread : threads) thread.join();
    if (!failure_.empty()) fail(failure_);
    for (const Change& each : changes)
      std::fill_n(contents_.begin() + static_cast<ptrdiff_t>(each.run.offset), each.run.length,
                  each.zero ? std::byte{0} : each.value);
  }

  template <typename Work>
  void keep_failure(Work work) {
    try {
      work();
    } catch (const std::exception& error) {
      const std::lock_guard lock(mutex_);
      failure_ = error.what();
    }
  }

  void write(const Change& each) const {
    if (each.zero) {
      uint64_t range[2] = {each.run.offset, each.run.length};
      if (ioctl(fd_, BLKZEROOUT, range) < 0) fail_errno("zeroing " + each.run.text());
      return;
    }
    Aligned bytes(each.run.length);
    std::fill_n(bytes.get(), each.run.length, each.value);
    const ssize_t did =
        pwrite(fd_, bytes.get(), each.run.length, static_cast<off_t>(each.run.offset));
    if (did < 0) fail_errno("writing " + each.run.text());
    if (static_cast<uint64_t>(did) != each.run.length)
      fail("writing " + each.run.text() + " was short");
  }

  Aligned read(Run run) const {
    Aligned bytes(run.length);
    const ssize_t did = pread(fd_, bytes.get(), run.length, static_cast<off_t>(run.offset));
    if (did < 0) fail_errno("reading " + run.text());
    if (static_cast<uint64_t>(did) != run.length) fail("reading " + run.text() + " was short");
    return bytes;
  }

  void check(Run run) const {
    Aligned bytes = read(run);
    const std::byte* want = contents_.data() + run.offset;
    const auto [found, wanted] = std::mismatch(bytes.get(), bytes.get() + run.length, want);
    if (wanted != want + run.length)
      fail("byte " + std::to_string(wanted - contents_.data()) + " should be " +
           std::to_string(std::to_integer<int>(*wanted)) + " and is " +
           std::to_string(std::to_integer<int>(*found)) + ", reading " + run.text());
  }

  // Each sector of it is as before or zeroes, and stays what it is.
  void discard(Run run) {
    uint64_t range[2] = {run.offset, run.length};
    if (ioctl(fd_, BLKDISCARD, range) < 0) {
      if (errno == EOPNOTSUPP) return;
      fail_errno("discarding " + run.text());
    }
    Aligned bytes = read(run);
    for (uint64_t at = 0; at < run.length; at += kSector) {
      const std::byte* found = bytes.get() + at;
      std::byte* known = contents_.data() + run.offset + at;
      const bool zeroes =
          std::all_of(found, found + kSector, [](std::byte b) { return b == std::byte{0}; });
      if (!zeroes && !std::equal(found, found + kSector, known))
        fail("the sector at byte " + std::to_string(run.offset + at) +
             " is neither zeroes nor as before the discard of " + run.text());
      std::copy_n(found, kSector, known);
    }
  }

  void verify() const {
    constexpr uint64_t kChunk = 1 << 20;
    for (uint64_t at = 0; at < contents_.size(); at += kChunk)
      check({at, std::min(kChunk, contents_.size() - at)});
  }

  const std::string device_;
  Bytes contents_;
  std::mt19937_64 random_;
  std::mutex mutex_;
  std::string failure_;
  int fd_ = -1;
};

Bytes load(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  Bytes bytes(in ? static_cast<size_t>(in.tellg()) : 0);
  in.seekg(0);
  in.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!in) fail("reading " + path + " failed");
  return bytes;
}

void save(const std::string& path, const Bytes& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out) fail("writing " + path + " failed");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 5) fail("usage: blockplay DEVICE CONTENTS SEED OPS");
    Player player(argv[1], load(argv[2]), strtoull(argv[3], nullptr, 0));
    player.play(strtoull(argv[4], nullptr, 0));
    save(argv[2], player.contents());
    return 0;
  } catch (const std::exception& error) {
    fprintf(stderr, "blockplay: %s\n", error.what());
    return 1;
  }
}
