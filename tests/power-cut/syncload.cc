// SPDX-License-Identifier: GPL-2.0-or-later
// A load on a file system of which is known what a power cut must leave.
//
//   syncload run DIR SEED RECORDS DEVICE   writes the records; after each has been fsynced, with
//                                          what leads to it, the log of the dm-log-writes DEVICE
//                                          gets the mark "acked-N"
//   syncload verify DIR SEED ACKED         finds all up to ACKED, and of the next one what may be
//
// A third of the records are files of their own, in a folder that is new now and then; the others
// overwrite a place in one file of many, some of 512 bytes, some of 64 KiB. What a sector holds
// follows from the place and the number of the record alone (tests/system/pattern.hh).
#include <fcntl.h>
#include <libdevmapper.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/system/pattern.hh"

namespace {

constexpr uint32_t kPlaces = 40;         // in the file of many
constexpr uint64_t kPlaceSectors = 128;  // each

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }
[[noreturn]] void fail_errno(const std::string& what) { fail(what + ": " + strerror(errno)); }

class Fd {
 public:
  Fd(const std::string& path, int flags) : path_(path), fd_(open(path.c_str(), flags, 0644)) {
    if (fd_ < 0) fail_errno("opening " + path);
  }
  ~Fd() { close(fd_); }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;

  void write(const std::vector<std::byte>& bytes, uint64_t at) const {
    if (pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(at)) !=
        static_cast<ssize_t>(bytes.size()))
      fail_errno("writing " + path_);
  }
  std::vector<std::byte> read(uint64_t bytes, uint64_t at) const {
    std::vector<std::byte> found(bytes);
    const ssize_t count = pread(fd_, found.data(), bytes, static_cast<off_t>(at));
    if (count < 0) fail_errno("reading " + path_);
    found.resize(static_cast<size_t>(count));
    return found;
  }
  void set_length(uint64_t bytes) const {
    if (ftruncate(fd_, static_cast<off_t>(bytes)) < 0) fail_errno("the length of " + path_);
  }
  void sync() const {
    if (fsync(fd_) < 0) fail_errno("fsync of " + path_);
  }

 private:
  std::string path_;
  int fd_;
};

struct Record {
  uint32_t number = 0;
  bool own_file = false;
  std::string folder, name;  // of its own file
  uint32_t place = 0;        // in the file of many
  uint64_t sectors = 0;
};

// The same for each run with one seed.
class Records {
 public:
  explicit Records(uint64_t seed) : random_(seed) {}
  Record next() {
    Record record;
    record.number = ++number_;
    record.own_file = random_() % 3 == 0;
    record.folder = "folder-" + std::to_string(number_ / 16);
    record.name = record.folder + "/record-" + std::to_string(number_);
    record.place = static_cast<uint32_t>(random_() % kPlaces);
    const uint64_t lengths[] = {1, 8, 8, 24, kPlaceSectors};
    record.sectors = lengths[random_() % std::size(lengths)];
    return record;
  }

 private:
  std::mt19937_64 random_;
  uint32_t number_ = 0;
};

// Where a record's sectors begin to be numbered: those of a place as in the file of many.
uint64_t first_sector(const Record& record) {
  return record.own_file ? 0 : record.place * kPlaceSectors;
}

std::vector<std::byte> content(const Record& record, uint64_t seed) {
  std::vector<std::byte> bytes(record.sectors * kSector);
  for (uint64_t i = 0; i < record.sectors; i++)
    fill_sector(&bytes[i * kSector], first_sector(record) + i, record.number, seed);
  return bytes;
}

void mark(const std::string& device, const std::string& words) {
  dm_task* task = dm_task_create(DM_DEVICE_TARGET_MSG);
  const bool sent = task && dm_task_set_name(task, device.c_str()) && dm_task_set_sector(task, 0) &&
                    dm_task_set_message(task, ("mark " + words).c_str()) && dm_task_run(task);
  if (task) dm_task_destroy(task);
  if (!sent) fail(device + " takes no mark");
}

void run(const std::string& dir, uint64_t seed, uint32_t count, const std::string& device) {
  const std::string many = dir + "/many";
  {
    const Fd file(many, O_RDWR | O_CREAT);
    file.set_length(kPlaces * kPlaceSectors * kSector);
    file.sync();
    Fd(dir, O_RDONLY).sync();
  }
  mark(device, "acked-0");
  Records records(seed);
  for (uint32_t i = 0; i < count; i++) {
    const Record record = records.next();
    if (record.own_file) {
      const std::string folder = dir + "/" + record.folder;
      if (mkdir(folder.c_str(), 0755) < 0 && errno != EEXIST) fail_errno("making " + folder);
      const Fd file(dir + "/" + record.name, O_RDWR | O_CREAT);
      file.write(content(record, seed), 0);
      file.sync();
      Fd(folder, O_RDONLY).sync();
      Fd(dir, O_RDONLY).sync();
    } else {
      const Fd file(many, O_RDWR);
      file.write(content(record, seed), first_sector(record) * kSector);
      file.sync();
    }
    mark(device, "acked-" + std::to_string(record.number));
  }
}

void verify_file(const std::string& path, const Record& record, uint64_t seed) {
  const std::vector<std::byte> found = Fd(path, O_RDONLY).read(record.sectors * kSector, 0);
  if (found != content(record, seed)) fail(path + " is not what was written and fsynced");
}

// Each sector of the file of many is of the last acknowledged record that covers it, or of the one
// after all acknowledged ones, which may have been written in part.
void verify(const std::string& dir, uint64_t seed, uint32_t acked) {
  Records records(seed);
  std::vector<uint32_t> version(kPlaces * kPlaceSectors);
  for (uint32_t i = 0; i < acked; i++) {
    const Record record = records.next();
    if (record.own_file) {
      verify_file(dir + "/" + record.name, record, seed);
      continue;
    }
    for (uint64_t s = 0; s < record.sectors; s++) version[first_sector(record) + s] = record.number;
  }
  const Record under_way = records.next();
  const uint64_t begin = first_sector(under_way), end = begin + under_way.sectors;
  const uint64_t length = version.size() * kSector;
  const std::vector<std::byte> found = Fd(dir + "/many", O_RDONLY).read(length, 0);
  if (found.size() != length) fail("the file of many is too short");
  for (uint64_t s = 0; s < version.size(); s++) {
    const std::byte* sector = &found[s * kSector];
    const bool may_be_newer = !under_way.own_file && begin <= s && s < end;
    if (is_sector(sector, s, version[s], seed)) continue;
    if (may_be_newer && is_sector(sector, s, under_way.number, seed)) continue;
    fail("sector " + std::to_string(s) + " of the file of many should be of record " +
         std::to_string(version[s]) + " and is " + describe_sector(sector));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  try {
    if (words.size() == 5 && words[0] == "run")
      run(words[1], std::stoull(words[2]), static_cast<uint32_t>(std::stoul(words[3])), words[4]);
    else if (words.size() == 4 && words[0] == "verify")
      verify(words[1], std::stoull(words[2]), static_cast<uint32_t>(std::stoul(words[3])));
    else
      fail("run DIR SEED RECORDS DEVICE, or verify DIR SEED ACKED");
    return 0;
  } catch (const std::exception& error) {
    fprintf(stderr, "syncload: %s\n", error.what());
  }
  return 1;
}
