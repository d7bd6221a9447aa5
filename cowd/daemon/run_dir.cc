// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/run_dir.hh"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace {

constexpr const char* kTemporary = ".new";

void make_directory(const std::string& path) {
  if (mkdir(path.c_str(), 0700) < 0 && errno != EEXIST)
    throw Error(errno, text("The directory ", path, " cannot be made: ", errno_text(errno),
                            ". cowd keeps there what is attached; make room, or correct "
                            "paths.run_dir."));
}

std::string pid_in(const std::string& path) {
  std::ifstream in(path);
  std::string pid;
  in >> pid;
  return pid.empty() ? "unknown" : pid;
}

bool write_all(int fd, const std::string& content) {
  size_t done = 0;
  while (done < content.size()) {
    ssize_t count = ::write(fd, content.data() + done, content.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += static_cast<size_t>(count);
  }
  return true;
}

}  // namespace

RunDir::RunDir(std::string path) : path_(std::move(path)) {
  make_directory(path_);
  make_directory(path_ + "/devices.d");
  std::string lock_path = path_ + "/lock";
  // Only to be locked: a file open for writing would keep the file system writable.
  lock_ = open(lock_path.c_str(), O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
  if (lock_ < 0)
    throw Error(errno, text("The lock ", lock_path, " cannot be opened: ", errno_text(errno),
                            ". cowd has to be able to write to ", path_, "."));
  if (flock(lock_, LOCK_EX | LOCK_NB) < 0) {
    int code = errno;
    close(lock_);
    if (code != EWOULDBLOCK)
      throw Error(code, text("The lock ", lock_path, " cannot be taken: ", errno_text(code), "."));
    throw Error(EBUSY, text("Another cowd (process ", pid_in(lock_path), ") serves ", path_,
                            ". Stop that one first, or give this one another directory with "
                            "--run-dir."));
  }
  // Only for the sentence above; a full file system is no reason not to start.
  int writable = open(lock_path.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC);
  if (writable < 0) return;
  write_all(writable, text(getpid(), "\n"));
  close(writable);
}

RunDir::~RunDir() { close(lock_); }

std::string RunDir::entry_path(const std::string& name) const {
  return path_ + "/devices.d/" + name + ".json";
}

void RunDir::write(const DeviceEntry& entry) const {
  std::string target = entry_path(entry.name);
  std::string temporary = target + kTemporary;
  int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  int code = fd < 0 ? errno : 0;
  if (fd >= 0) {
    if (!write_all(fd, to_json(entry).dump(2) + "\n")) code = errno ? errno : ENOSPC;
    if (close(fd) < 0 && !code) code = errno;
    if (!code && rename(temporary.c_str(), target.c_str()) < 0) code = errno;
  }
  if (!code) return;
  unlink(temporary.c_str());
  throw Error(code, text("The note of ", entry.name, " cannot be written to ", target, ": ",
                         errno_text(code),
                         ". Without it a restarted cowd would not know the "
                         "device; make room on that file system and try again."));
}

void RunDir::remove(const std::string& name) const noexcept { unlink(entry_path(name).c_str()); }

RunDir::Listing RunDir::list() const {
  Listing listing;
  std::error_code ignored;
  for (const auto& file : std::filesystem::directory_iterator(path_ + "/devices.d", ignored)) {
    std::string path = file.path().string();
    if (path.ends_with(kTemporary)) {  // of a cowd that died while it wrote
      unlink(path.c_str());
      continue;
    }
    try {
      std::ifstream in(path);
      std::ostringstream content;
      content << in.rdbuf();
      auto json = nlohmann::json::parse(content.str(), nullptr, false);
      DeviceEntry entry = entry_from_json(json);
      if (entry_path(entry.name) != path)
        throw Error(EINVAL, "Its name is not that of the device in it.");
      listing.entries.push_back(std::move(entry));
    } catch (const Error& error) {
      listing.complaints.push_back(
          text(path, " is no note of a device and was left alone. ", error.what()));
    }
  }
  return listing;
}

}  // namespace cowd
