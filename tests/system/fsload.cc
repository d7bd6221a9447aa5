// SPDX-License-Identifier: GPL-2.0-or-later
// A random load on a file system.
//
//   fsload run DIR SEED PROCESSES OPERATIONS
//   fsload tree DIR     prints the tree, for diff
//
// Each process owns DIR/pN, makes up its own operations from SEED and N alone and
// keeps in mind what it made, so the tree in the end is the same for each run with one
// seed, however the processes were scheduled. Times are set at the end for the same
// reason. An operation that fails ends the program with status 1 and a sentence.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "tests/system/fstree.hh"

namespace {

constexpr uint64_t kMaxFile = 512 * 1024;
constexpr size_t kMaxNames = 120;  // of a process
constexpr size_t kMaxDirs = 12;
constexpr time_t kTime = 1000000000;

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

struct Fd {
  Fd(const std::string& path, int flags) : value(open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    if (value < 0) fail("opening " + path);
  }
  ~Fd() { close(value); }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int value;
};

struct Inode {
  uint64_t size = 0;
};

// A regular file's name; hard links share the inode.
struct Name {
  std::string path;
  std::shared_ptr<Inode> inode;
};

class Worker {
 public:
  Worker(std::string root, uint64_t seed) : random_(seed), root_(std::move(root)) {
    if (mkdir(root_.c_str(), 0755) < 0) fail("making " + root_);
    dirs_.push_back(root_);
  }

  void run(uint64_t operations) {
    for (uint64_t i = 0; i < operations; i++) step();
    set_times();
  }

 private:
  uint64_t below(uint64_t limit) { return random_() % limit; }

  void step() {
    if (names_.empty()) return create();
    if (names_.size() > kMaxNames) return unlink_one();
    struct Choice {
      unsigned weight;
      void (Worker::*operation)();
    };
    static constexpr Choice choices[] = {
        {14, &Worker::create},      {30, &Worker::write_some}, {8, &Worker::append},
        {8, &Worker::truncate_one}, {8, &Worker::rename_one},  {4, &Worker::rename_over},
        {4, &Worker::link_one},     {7, &Worker::unlink_one},  {6, &Worker::punch},
        {3, &Worker::zero},         {4, &Worker::sync_one},    {2, &Worker::make_dir},
        {3, &Worker::make_symlink}, {3, &Worker::set_xattr},   {3, &Worker::change_mode},
        {4, &Worker::write_mapped}, {1, &Worker::rename_dir},
    };
    unsigned all = 0;
    for (const Choice& choice : choices) all += choice.weight;
    auto drawn = static_cast<unsigned>(below(all));
    for (const Choice& choice : choices) {
      if (drawn < choice.weight) return (this->*choice.operation)();
      drawn -= choice.weight;
    }
  }

  Name& any() { return names_[below(names_.size())]; }
  std::string new_path() { return dirs_[below(dirs_.size())] + "/n" + std::to_string(counter_++); }

  void create() {
    const std::string path = new_path();
    const Fd fd(path, O_WRONLY | O_CREAT | O_EXCL);
    names_.push_back({path, std::make_shared<Inode>()});
    write_at(fd, *names_.back().inode, 0, 1 + below(64 * 1024));
  }

  std::vector<uint64_t> make_content(uint64_t length) {
    std::vector<uint64_t> words(length / 8 + 1);
    uint64_t word = random_();
    for (auto& each : words) each = word += 0x9e3779b97f4a7c15;
    return words;
  }

  void write_at(const Fd& fd, Inode& inode, uint64_t offset, uint64_t length) {
    const auto content = make_content(length);
    const ssize_t did = pwrite(fd.value, content.data(), length, static_cast<off_t>(offset));
    if (did != static_cast<ssize_t>(length)) fail("writing " + std::to_string(length) + " bytes");
    inode.size = std::max(inode.size, offset + length);
  }

  void write_some() {
    const Name& name = any();
    const Fd fd(name.path, O_RDWR | (below(12) ? 0 : O_SYNC));
    write_at(fd, *name.inode, below(kMaxFile / 2), 1 + below(kMaxFile / 8));
  }

  void append() {
    const Name& name = any();
    if (name.inode->size > kMaxFile) return truncate_one();
    const Fd fd(name.path, O_WRONLY);
    write_at(fd, *name.inode, name.inode->size, 1 + below(32 * 1024));
  }

  void truncate_one() {
    const Name& name = any();
    name.inode->size = below(kMaxFile / 2);
    if (truncate(name.path.c_str(), static_cast<off_t>(name.inode->size)) < 0)
      fail("truncating " + name.path);
  }

  void rename_one() {
    Name& name = any();
    const std::string to = new_path();
    if (rename(name.path.c_str(), to.c_str()) < 0) fail("renaming " + name.path);
    name.path = to;
  }

  void rename_over() {
    const size_t from = below(names_.size()), to = below(names_.size());
    // Between two names of one inode rename does nothing.
    if (names_[from].inode == names_[to].inode) return;
    if (rename(names_[from].path.c_str(), names_[to].path.c_str()) < 0)
      fail("renaming " + names_[from].path);
    names_[to].inode = names_[from].inode;
    forget(from);
  }

  void link_one() {
    const Name name = any();
    const std::string to = new_path();
    if (link(name.path.c_str(), to.c_str()) < 0) fail("linking " + name.path);
    names_.push_back({to, name.inode});
  }

  void unlink_one() {
    const size_t at = below(names_.size());
    if (unlink(names_[at].path.c_str()) < 0) fail("unlinking " + names_[at].path);
    forget(at);
  }

  void forget(size_t at) {
    names_[at] = names_.back();
    names_.pop_back();
  }

  void allocate(int mode, const char* what) {
    const Name& name = any();
    if (name.inode->size < 2) return;
    const Fd fd(name.path, O_RDWR);
    const uint64_t offset = below(name.inode->size);
    const uint64_t length = 1 + below(name.inode->size - offset);
    if (fallocate(fd.value, mode | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                  static_cast<off_t>(length)) < 0)
      fail(std::string(what) + " " + name.path);
  }

  void punch() { allocate(FALLOC_FL_PUNCH_HOLE, "punching a hole into"); }
  void zero() { allocate(FALLOC_FL_ZERO_RANGE, "zeroing a part of"); }

  void sync_one() {
    if (below(8) == 0) {
      const Fd dir(dirs_[below(dirs_.size())], O_RDONLY | O_DIRECTORY);
      if (fsync(dir.value) < 0) fail("fsync of a directory");
      return;
    }
    const Name& name = any();
    const Fd fd(name.path, O_RDWR);
    if (fsync(fd.value) < 0) fail("fsync of " + name.path);
  }

  void make_dir() {
    if (dirs_.size() > kMaxDirs) return;
    const std::string path = new_path();
    if (mkdir(path.c_str(), 0755) < 0) fail("making " + path);
    dirs_.push_back(path);
  }

  // With all that is in it.
  void rename_dir() {
    if (dirs_.size() < 2) return;
    const std::string from = dirs_[1 + below(dirs_.size() - 1)];
    const std::string to = root_ + "/d" + std::to_string(counter_++);
    if (rename(from.c_str(), to.c_str()) < 0) fail("renaming " + from);
    const auto move = [&](std::string& path) {
      if (path == from || path.starts_with(from + "/")) path = to + path.substr(from.size());
    };
    for (auto& dir : dirs_) move(dir);
    for (auto& name : names_) move(name.path);
    for (auto& each : symlinks_) move(each);
  }

  void make_symlink() {
    const std::string path = new_path();
    const std::string target =
        "n" + std::to_string(below(counter_ + 1)) + std::string(below(90), 'x');
    if (symlink(target.c_str(), path.c_str()) < 0) fail("making the symlink " + path);
    symlinks_.push_back(path);
  }

  void set_xattr() {
    const Name& name = any();
    const std::string value(1 + below(200), static_cast<char>('a' + below(26)));
    const std::string key = "user.k" + std::to_string(below(4));
    if (setxattr(name.path.c_str(), key.c_str(), value.data(), value.size(), 0) < 0)
      fail("setxattr of " + name.path);
  }

  void change_mode() {
    const Name& name = any();
    if (chmod(name.path.c_str(), static_cast<mode_t>(0600 | below(0200))) < 0)
      fail("chmod of " + name.path);
  }

  void write_mapped() {
    const Name& name = any();
    if (!name.inode->size) return;
    const Fd fd(name.path, O_RDWR);
    void* at = mmap(nullptr, name.inode->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.value, 0);
    if (at == MAP_FAILED) fail("mapping " + name.path);
    const uint64_t offset = below(name.inode->size);
    const uint64_t length = std::min<uint64_t>(1 + below(16384), name.inode->size - offset);
    memcpy(static_cast<char*>(at) + offset, make_content(length).data(), length);
    const int r = below(4) ? 0 : msync(at, name.inode->size, MS_SYNC);
    munmap(at, name.inode->size);
    if (r < 0) fail("msync of " + name.path);
  }

  void set_times() {
    const timespec times[2] = {{kTime, 0}, {kTime, 0}};
    const auto set = [&](const std::string& path) {
      if (utimensat(AT_FDCWD, path.c_str(), times, AT_SYMLINK_NOFOLLOW) < 0)
        fail("setting the times of " + path);
    };
    for (const auto& name : names_) set(name.path);
    for (const auto& each : symlinks_) set(each);
    for (const auto& dir : dirs_) set(dir);
  }

  std::mt19937_64 random_;
  std::string root_;
  uint64_t counter_ = 0;
  std::vector<std::string> dirs_, symlinks_;
  std::vector<Name> names_;
};

void work(const std::string& dir, uint64_t seed, unsigned number, uint64_t operations) {
  try {
    Worker(dir + "/s" + std::to_string(seed) + "p" + std::to_string(number), seed * 100 + number)
        .run(operations);
    _exit(0);
  } catch (const std::exception& error) {
    fprintf(stderr, "fsload: process %u: %s\n", number, error.what());
    _exit(1);
  }
}

int run(const std::string& dir, uint64_t seed, unsigned processes, uint64_t operations) {
  for (unsigned number = 0; number < processes; number++) {
    const pid_t pid = fork();
    if (pid < 0) fail("fork");
    if (!pid) work(dir, seed, number, operations);
  }
  int status, result = 0;
  while (wait(&status) > 0)
    if (status) result = 1;
  const timespec times[2] = {{kTime, 0}, {kTime, 0}};
  if (utimensat(AT_FDCWD, dir.c_str(), times, 0) < 0) fail("setting the times of " + dir);
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  try {
    if (command == "run" && argc == 6)
      return run(argv[2], strtoull(argv[3], nullptr, 0), static_cast<unsigned>(atoi(argv[4])),
                 strtoull(argv[5], nullptr, 0));
    if (command == "tree" && argc == 3) {
      print_tree(argv[2]);
      return 0;
    }
  } catch (const std::exception& error) {
    fprintf(stderr, "fsload: %s\n", error.what());
    return 1;
  }
  fprintf(stderr, "usage: fsload run DIR SEED PROCESSES OPERATIONS | fsload tree DIR\n");
  return 2;
}
