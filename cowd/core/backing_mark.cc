// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/backing_mark.hh"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <utility>

#include "build/config.h"
#include "cowd/core/errno_name.hh"

namespace cowd {

namespace fs = std::filesystem;

namespace {

// Not below the run directory of a cowd's own choice: the rule has to find it.
const fs::path kMarks = COWD_RUN_DIR "/backings.d";
constexpr const char* kNew = "new";
constexpr const char* kReplacement = ".new";

std::string first_line(const fs::path& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

void make_directory() {
  for (const fs::path& path : {kMarks.parent_path(), kMarks})
    if (mkdir(path.c_str(), 0700) < 0 && errno != EEXIST)
      throw system_error(errno, "Making the directory " + path.string() + " failed");
}

// Whether the file that is open still has its name: who held the lock may have replaced it.
bool is_named(int fd, const fs::path& path) {
  struct stat open_one {
  }, named{};
  return fstat(fd, &open_one) == 0 && stat(path.c_str(), &named) == 0 &&
         open_one.st_ino == named.st_ino;
}

std::string disk_sequence(const std::string& device) {
  return first_line(fs::path("/sys/block") / device / "diskseq");
}

// Of a mark that nobody holds.
bool holds(const std::string& device) {
  std::error_code ignored;
  const std::string said = first_line(kMarks / device);
  return !said.empty() && said == disk_sequence(device) &&
         fs::exists(fs::path("/sys/block") / device / "loop/backing_file", ignored);
}

void clean_one(const fs::path& path) {
  const Fd fd(open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (fd.get() < 0 || flock(fd.get(), LOCK_EX | LOCK_NB) < 0 || !is_named(fd.get(), path)) return;
  if (!holds(path.filename().string())) unlink(path.c_str());
}

}  // namespace

BackingMark::BackingMark(std::string device) : device_(std::move(device)) {
  make_directory();
  const fs::path path = kMarks / device_;
  do {
    lock_ = Fd(open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
    int done = -1;
    while (lock_.get() >= 0 && (done = flock(lock_.get(), LOCK_EX)) < 0 && errno == EINTR) {
    }
    if (done < 0) throw system_error(errno, "Taking the mark " + path.string() + " failed");
  } while (!is_named(lock_.get(), path));
}

BackingMark::~BackingMark() {
  if (set_) unlink((kMarks / device_).c_str());
}

// A file in place of the other: whoever reads it reads all of one of them. The new one is locked
// before it has the name.
void BackingMark::write(const std::string& content) {
  const fs::path path = kMarks / device_;
  const std::string replacement = (kMarks / ("." + device_)).string() + kReplacement;
  const std::string line = content + "\n";
  Fd fd(open(replacement.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (fd.get() < 0 || flock(fd.get(), LOCK_EX | LOCK_NB) < 0 ||
      ::write(fd.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()) ||
      rename(replacement.c_str(), path.c_str()) < 0)
    throw system_error(errno, "Writing the mark " + path.string() + " failed");
  lock_ = std::move(fd);
}

void BackingMark::set() {
  write(kNew);
  set_ = true;
}

void BackingMark::keep() {
  write(disk_sequence(device_));
  set_ = false;
}

std::vector<std::string> BackingMark::loops() {
  std::vector<std::string> devices;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(kMarks, ignored))
    if (const std::string name = entry.path().filename(); name.starts_with("loop") && holds(name))
      devices.push_back(name);
  return devices;
}

void BackingMark::clean() noexcept {
  try {
    make_directory();
    for (const auto& entry : fs::directory_iterator(kMarks))
      if (!entry.path().filename().string().starts_with('.')) clean_one(entry.path());
  } catch (const std::exception&) {
    // A mark that stays harms nobody: it names a disk that there is no more.
  }
}

}  // namespace cowd
