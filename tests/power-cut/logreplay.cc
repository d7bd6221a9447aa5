// SPDX-License-Identifier: GPL-2.0-or-later
// A disk as a power cut might have left it, from the log of its writes.
//
//   logreplay flushes LOG MARK WORDS      of the flushes after the first write whose data
//                                         begin with MARK the numbers of those that a write
//                                         which begins with WORDS follows before the next
//   logreplay replay LOG DISK MARK K SEED all writes up to the K-th flush after MARK and,
//                                         as a seed decides, about half of those between
//                                         it and the next one
//   logreplay points LOG COUNT SEED       COUNT entries after the mark "acked-0", half of them
//                                         marks "acked-N", the others any; each with the last N
//   logreplay point LOG DISK ENTRY SEED   what is certain at that entry and, as a seed decides,
//                                         about half of what is not
//
// The log is that of dm-log-writes, which QEMU's driver blklogwrites makes too: 64-bit
// little-endian fields, see Documentation/admin-guide/device-mapper/log-writes.rst and
// drivers/md/dm-log-writes.c in Linux. QEMU logs a write when it is sent, a flush likewise:
// what was complete before a flush was sent stands before it. The kernel logs a write when it has
// ended and a flush after it was sent has ended too, one with FUA when it has ended; and it has
// marks, whose words stand in the entry's own sector. Discards are passed over: a
// disk may keep what was there. DISK is to be as the logged one was at first (all zeroes).
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

constexpr uint64_t kMagic = 0x6a736677736872;
constexpr uint64_t kFlush = 1, kFua = 2, kDiscard = 4, kMark = 8;

struct Super {
  uint64_t magic, version, entries;
  uint32_t sector_size;
};

struct Entry {  // sectors of the log's sector size
  uint64_t sector, sectors, flags, data_length;
};

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

class Fd {
 public:
  Fd(const std::string& path, int flags) : path_(path), fd_(open(path.c_str(), flags | O_CLOEXEC)) {
    if (fd_ < 0) fail("opening " + path + ": " + strerror(errno));
  }
  ~Fd() { close(fd_); }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;

  // False at the end.
  bool read(void* to, size_t length, uint64_t at) const {
    for (size_t done = 0; done < length;) {
      const ssize_t n = pread(fd_, static_cast<char*>(to) + done, length - done,
                              static_cast<off_t>(at + done));
      if (n < 0) fail("reading " + path_ + ": " + strerror(errno));
      if (n == 0) return false;
      done += static_cast<size_t>(n);
    }
    return true;
  }
  void write(const void* from, size_t length, uint64_t at) const {
    for (size_t done = 0; done < length;) {
      const ssize_t n = pwrite(fd_, static_cast<const char*>(from) + done, length - done,
                               static_cast<off_t>(at + done));
      if (n <= 0) fail("writing " + path_ + ": " + strerror(errno));
      done += static_cast<size_t>(n);
    }
  }
  void sync() const {
    if (fsync(fd_) < 0) fail("writing " + path_ + ": " + strerror(errno));
  }

 private:
  std::string path_;
  int fd_;
};

class Log {
 public:
  explicit Log(const std::string& path) : file_(path, O_RDONLY) {
    if (!file_.read(&super_, sizeof super_, 0) || super_.magic != kMagic)
      fail(path + " is no log of writes");
    if (super_.sector_size < sizeof(Entry)) fail(path + " has sectors that are too small");
    at_ = super_.sector_size;
  }

  // The next one, with its data; false at the end, which a cut may have left ragged.
  bool next(Entry& entry, std::vector<char>& data) {
    if (seen_++ == super_.entries || !file_.read(&entry, sizeof entry, at_)) return false;
    if (!entry.sectors && !entry.flags) return false;
    if (entry.flags & kMark) {
      data.resize(std::min<uint64_t>(entry.data_length, super_.sector_size - sizeof entry));
      file_.read(data.data(), data.size(), at_ + sizeof entry);
      at_ += super_.sector_size;
      return true;
    }
    at_ += super_.sector_size;
    data.resize(entry.flags & kDiscard ? 0 : entry.sectors * super_.sector_size);
    const bool whole = file_.read(data.data(), data.size(), at_);
    at_ += data.size();
    return whole;
  }
  uint64_t sector_size() const { return super_.sector_size; }

 private:
  Fd file_;
  Super super_{};
  uint64_t at_ = 0, seen_ = 0;
};

bool begins_with(const std::vector<char>& data, const std::string& mark) {
  return data.size() >= mark.size() && memcmp(data.data(), mark.data(), mark.size()) == 0;
}

void flushes(const std::string& path, const std::string& mark, const std::string& words) {
  Log log(path);
  Entry entry;
  std::vector<char> data;
  uint64_t number = 0, told = 0;
  bool marked = false;
  while (log.next(entry, data)) {
    marked = marked || begins_with(data, mark);
    if (!marked) continue;
    if (entry.flags & kFlush) number++;
    if (number > told && begins_with(data, words)) printf("%lu\n", told = number);
  }
  if (!marked) fail("no write in " + path + " begins with \"" + mark + "\"");
}

void replay(const std::string& path, const std::string& disk, const std::string& mark,
            uint64_t last, uint64_t seed) {
  Log log(path);
  Fd to(disk, O_WRONLY);
  std::mt19937_64 random(seed);
  Entry entry;
  std::vector<char> data;
  uint64_t flushes = 0, later = 0, kept = 0;
  bool marked = false;
  while (log.next(entry, data)) {
    marked = marked || begins_with(data, mark);
    if (marked && (entry.flags & kFlush) && ++flushes > last) break;
    if (data.empty()) continue;
    const bool certain = !marked || flushes < last;
    if (!certain) later++;
    if (!certain && random() % 2) continue;
    if (!certain) kept++;
    to.write(data.data(), data.size(), entry.sector * log.sector_size());
  }
  if (flushes < last) fail("there are " + std::to_string(flushes) + " flushes only");
  to.sync();
  printf("%lu of %lu later writes\n", kept, later);
}

std::string words_of(const Entry& entry, const std::vector<char>& data) {
  if (!(entry.flags & kMark)) return "";
  return std::string(data.data(), strnlen(data.data(), data.size()));
}

constexpr std::string_view kAcked = "acked-";

void points(const std::string& path, uint64_t count, uint64_t seed) {
  Log log(path);
  Entry entry;
  std::vector<char> data;
  struct Point {
    uint64_t entry;
    std::string acked;
  };
  std::vector<Point> marks, others;
  std::string acked;
  for (uint64_t number = 0; log.next(entry, data); number++) {
    const std::string words = words_of(entry, data);
    const bool is_mark = words.compare(0, kAcked.size(), kAcked) == 0;
    if (is_mark) acked = words.substr(kAcked.size());
    if (!acked.empty()) (is_mark ? marks : others).push_back({number, acked});
  }
  if (marks.size() < 2) fail("nothing is acknowledged in " + path);
  std::mt19937_64 random(seed);
  for (uint64_t i = 0; i < count; i++) {
    // The marks evenly, so that each part of the log has some.
    const Point& point = i % 2 ? others[random() % others.size()]
                               : marks[(marks.size() - 1) * (i + 1) / count];
    printf("%lu %s\n", point.entry, point.acked.c_str());
  }
}

void point(const std::string& path, const std::string& disk, uint64_t last, uint64_t seed) {
  uint64_t flush = 0;  // the last one
  {
    Log log(path);
    Entry entry;
    std::vector<char> data;
    for (uint64_t number = 0; number <= last && log.next(entry, data); number++)
      if (entry.flags & kFlush) flush = number;
  }
  Log log(path);
  Fd to(disk, O_WRONLY);
  std::mt19937_64 random(seed);
  Entry entry;
  std::vector<char> data;
  uint64_t later = 0, kept = 0;
  for (uint64_t number = 0; log.next(entry, data); number++) {
    // What a later flush made certain may be there before it, if it was sent before it. Behind a
    // mark there is what was begun only after that.
    if (number > last && entry.flags & (kFlush | kMark)) break;
    if (data.empty() || entry.flags & kMark) continue;
    const bool certain = number < flush || (number <= last && entry.flags & kFua);
    if (!certain && entry.flags & kFua) continue;
    if (!certain) later++;
    if (!certain && random() % 2) continue;
    if (!certain) kept++;
    to.write(data.data(), data.size(), entry.sector * log.sector_size());
  }
  to.sync();
  printf("%lu of %lu later writes\n", kept, later);
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  try {
    if (words.size() == 4 && words[0] == "flushes") {
      flushes(words[1], words[2], words[3]);
    } else if (words.size() == 6 && words[0] == "replay") {
      replay(words[1], words[2], words[3], std::stoull(words[4]), std::stoull(words[5]));
    } else if (words.size() == 4 && words[0] == "points") {
      points(words[1], std::stoull(words[2]), std::stoull(words[3]));
    } else if (words.size() == 5 && words[0] == "point") {
      point(words[1], words[2], std::stoull(words[3]), std::stoull(words[4]));
    } else {
      fail("flushes LOG MARK WORDS, replay LOG DISK MARK K SEED, points LOG COUNT SEED or "
           "point LOG DISK ENTRY SEED");
    }
    return 0;
  } catch (const std::exception& error) {
    fprintf(stderr, "logreplay: %s\n", error.what());
  }
  return 1;
}
