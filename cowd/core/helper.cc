// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/helper.hh"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "build/config.h"
#include "cowd/core/child.hh"
#include "cowd/core/errno_name.hh"

namespace cowd {

namespace fs = std::filesystem;

namespace {

constexpr const char* kHold = "helper-";

bool systemd_runs() { return access("/run/systemd/system", F_OK) == 0; }

std::string random_word() {
  std::ifstream in("/proc/sys/kernel/random/uuid");
  std::string uuid;
  in >> uuid;
  return uuid.substr(0, 8);
}

// As a unit of the service manager's own making, up when the program has gone into the background.
std::vector<std::string> as_unit(const std::vector<std::string>& argv) {
  const std::string name = fs::path(argv.front()).filename().string();
  std::vector<std::string> all = {
      "systemd-run", "--quiet", "--collect", "--unit=" + name + "-" + random_word() + ".service",
      "--property=Type=forking",
      // Killed, it is started again; not where it failed, which its caller is told.
      "--property=Restart=on-abnormal", "--property=RestartSec=1",
      // Disks lie on it: it goes last, and the kernel ends it.
      "--property=DefaultDependencies=no", "--property=IgnoreOnIsolate=yes",
      "--property=OOMScoreAdjust=-1000", "--"};
  all.insert(all.end(), argv.begin(), argv.end());
  return all;
}

}  // namespace

HoldFile::HoldFile(const std::string& run_dir) {
  if (mkdir(run_dir.c_str(), 0700) < 0 && errno != EEXIST)
    throw system_error(errno, "Making the directory " + run_dir + " failed");
  // Who removes those that are left may be faster than our lock.
  for (;;) {
    make(run_dir);
    struct stat info {};
    if (flock(fd_, LOCK_EX | LOCK_NB) == 0 && fstat(fd_, &info) == 0 && info.st_nlink) return;
    close(fd_);
  }
}

void HoldFile::make(const std::string& run_dir) {
  path_ = run_dir + "/" + kHold + "XXXXXX";
  fd_ = mkostemp(path_.data(), O_CLOEXEC);
  if (fd_ < 0) throw system_error(errno, "Making a file in " + run_dir + " failed");
}

HoldFile::~HoldFile() {
  unlink(path_.c_str());
  close(fd_);
}

void remove_left_hold_files(const std::string& run_dir) noexcept {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(run_dir, ignored)) {
    if (!entry.path().filename().string().starts_with(kHold)) continue;
    const int fd = open(entry.path().c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) continue;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) unlink(entry.path().c_str());
    close(fd);
  }
}

std::string HoldFile::content() const {
  std::ifstream in(path_);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

std::string helper_path(const std::string& name) {
  std::error_code ignored;
  const fs::path here = fs::read_symlink("/proc/self/exe", ignored).parent_path();
  for (const fs::path& directory : {here, fs::path(COWD_SBIN_DIR), here / "../../bin"})
    if (access((directory / name).c_str(), X_OK) == 0) return directory / name;
  throw Error(ENOENT, "The program " + name +
                          " is neither beside this one nor in " COWD_SBIN_DIR
                          "; it is a part of cowd: install it again.");
}

void start_helper(const std::vector<std::string>& argv, const HoldFile& hold,
                  const std::string& purpose) {
  const ChildResult result = run_child(systemd_runs() ? as_unit(argv) : argv);
  if (result.ok()) return;
  const std::string said = hold.content();
  if (const size_t colon = said.find(": "); colon != std::string::npos)
    throw Error(errno_by_name(said.substr(0, colon)), purpose + ". " + said.substr(colon + 2));
  throw Error(EIO, purpose + ": starting " + argv.front() + " failed: " + last_words(result.err));
}

}  // namespace cowd
