// SPDX-License-Identifier: GPL-2.0-or-later
// What a guest does to its disks; linked statically, for the guest has no libraries.
//
//   guestdisk write     TARGET SEED START LENGTH   writes a pattern, then fdatasync
//   guestdisk verify    TARGET SEED START LENGTH   finds just that pattern
//   guestdisk zero      TARGET START LENGTH        finds zeroes
//   guestdisk scatter   TARGET SEED COUNT LENGTH   4 KiB here and there below LENGTH
//   guestdisk scattered TARGET SEED COUNT LENGTH   finds them, each at its place
//   guestdisk append    FILE SEED COUNT            records of 4 KiB, each with an fsync,
//                                                  after which `acked N` is printed
//   guestdisk record    FILE SEED NUMBER           one of them, from 1 on, with an fsync
//   guestdisk appended  FILE SEED COUNT            finds the first COUNT of them
//   guestdisk refused   TARGET                     writing is refused
//
// START and LENGTH are in KiB. What a sector holds follows from seed and place alone, so
// that nothing but the command line need survive the guest. A sector that holds something
// else ends the program with status 1 and a sentence.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/system/pattern.hh"

namespace {

constexpr uint64_t kKib = 1024;
constexpr uint64_t kChunk = 256 * kKib;
constexpr uint64_t kRecord = 4 * kKib;

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

[[noreturn]] void fail_errno(const std::string& what) {
  const int error = errno;
  fail(what + ": " + strerror(error));
}

class Target {
 public:
  Target(const std::string& path, int flags) : path_(path), buffer_(allocate(), free) {
    fd_ = open(path.c_str(), flags | O_CLOEXEC, 0644);
    if (fd_ < 0) fail_errno("opening " + path);
  }
  ~Target() { close(fd_); }
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  // All in bytes, whole sectors, at most kChunk.
  void write(uint64_t seed, uint64_t at, uint64_t length) {
    for (uint64_t done = 0; done < length; done += kSector)
      fill_sector(buffer_.get() + done, (at + done) / kSector, 1, seed);
    write_buffer(at, length);
  }

  void verify(uint64_t seed, uint64_t at, uint64_t length) { check(1, seed, at, length); }
  void verify_zero(uint64_t at, uint64_t length) { check(0, 0, at, length); }

  void write_buffer(uint64_t at, uint64_t length) {
    const ssize_t did = pwrite(fd_, buffer_.get(), length, static_cast<off_t>(at));
    if (did < 0) fail_errno("writing " + where(at, length));
    if (did != static_cast<ssize_t>(length)) fail("writing " + where(at, length) + " was short");
  }

  void sync() {
    if (fdatasync(fd_) < 0) fail_errno("fdatasync of " + path_);
  }
  void sync_all() {
    if (fsync(fd_) < 0) fail_errno("fsync of " + path_);
  }

 private:
  static std::byte* allocate() { return static_cast<std::byte*>(aligned_alloc(4096, kChunk)); }

  void check(uint32_t version, uint64_t seed, uint64_t at, uint64_t length) {
    const ssize_t did = pread(fd_, buffer_.get(), length, static_cast<off_t>(at));
    if (did < 0) fail_errno("reading " + where(at, length));
    if (did != static_cast<ssize_t>(length)) fail("reading " + where(at, length) + " was short");
    for (uint64_t done = 0; done < length; done += kSector) {
      const std::byte* found = buffer_.get() + done;
      const uint64_t number = (at + done) / kSector;
      if (!is_sector(found, number, version, seed))
        fail("sector " + std::to_string(number) + " of " + path_ + " should be " +
             (version ? "seed " + std::to_string(seed) : "zeroes") + " and is " +
             describe_sector(found));
    }
  }

  std::string where(uint64_t at, uint64_t length) const {
    return std::to_string(length) + " bytes at " + std::to_string(at) + " of " + path_;
  }

  std::string path_;
  std::unique_ptr<std::byte, decltype(&free)> buffer_;
  int fd_;
};

template <typename Function>
void in_chunks(uint64_t start, uint64_t length, Function function) {
  for (uint64_t done = 0; done < length; done += kChunk)
    function(start + done, std::min(kChunk, length - done));
}

// COUNT places of 4 KiB below LENGTH bytes, all different.
std::set<uint64_t> places(uint64_t seed, uint64_t count, uint64_t length) {
  const uint64_t all = length / kRecord;
  if (count > all) fail("there is no room for so many");
  std::mt19937_64 random(seed);
  std::set<uint64_t> result;
  while (result.size() < count) result.insert(random() % all * kRecord);
  return result;
}

void append(const std::string& path, uint64_t seed, uint64_t count) {
  Target target(path, O_RDWR | O_CREAT | O_TRUNC);
  for (uint64_t i = 0; i < count; i++) {
    target.write(seed, i * kRecord, kRecord);
    target.sync_all();
    printf("acked %lu\n", i + 1);
    fflush(stdout);
  }
}

// A device may refuse the opening or, where its node does not know, the write.
void refused(const std::string& path) {
  try {
    Target target(path, O_RDWR | O_DIRECT);
    target.write_buffer(0, kRecord);
    target.sync();
  } catch (const std::exception& error) {
    printf("%s\n", error.what());
    return;
  }
  fail("a write to " + path + " was not refused");
}

int run(const std::vector<std::string>& words) {
  const auto number = [&](size_t i) { return std::stoull(words.at(i), nullptr, 0); };
  const std::string& command = words.at(0);
  const std::string& path = words.at(1);
  if (command == "write" || command == "verify") {
    const bool writes = command == "write";
    Target target(path, (writes ? O_RDWR : O_RDONLY) | O_DIRECT);
    in_chunks(number(3) * kKib, number(4) * kKib, [&](uint64_t at, uint64_t length) {
      writes ? target.write(number(2), at, length) : target.verify(number(2), at, length);
    });
    if (writes) target.sync();
  } else if (command == "zero") {
    Target target(path, O_RDONLY | O_DIRECT);
    in_chunks(number(2) * kKib, number(3) * kKib,
              [&](uint64_t at, uint64_t length) { target.verify_zero(at, length); });
  } else if (command == "scatter" || command == "scattered") {
    const bool writes = command == "scatter";
    Target target(path, (writes ? O_RDWR : O_RDONLY) | O_DIRECT);
    for (const uint64_t at : places(number(2), number(3), number(4) * kKib))
      writes ? target.write(number(2), at, kRecord) : target.verify(number(2), at, kRecord);
    if (writes) target.sync();
  } else if (command == "append") {
    append(path, number(2), number(3));
  } else if (command == "record") {
    Target target(path, O_RDWR | O_CREAT);
    target.write(number(2), (number(3) - 1) * kRecord, kRecord);
    target.sync_all();
  } else if (command == "appended") {
    Target target(path, O_RDONLY);
    for (uint64_t i = 0; i < number(3); i++) target.verify(number(2), i * kRecord, kRecord);
  } else if (command == "refused") {
    refused(path);
  } else {
    fail("there is no command " + command);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::out_of_range&) {
    fprintf(stderr, "guestdisk: a word is missing\n");
  } catch (const std::exception& error) {
    fprintf(stderr, "guestdisk: %s\n", error.what());
  }
  return 1;
}
