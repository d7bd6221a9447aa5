// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/loop.hh"

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <utility>
#include <vector>

#include "cowd/core/backing_mark.hh"
#include "cowd/core/block_name.hh"
#include "cowd/core/direct_io.hh"
#include "cowd/core/errno_name.hh"
#include "cowd/core/fd.hh"
#include "cowd/core/file_lock.hh"

namespace cowd {

namespace fs = std::filesystem;

namespace {

// udev's workers lock what they look at for a moment; one that hangs is ended after 180 s, which
// nobody waits for.
constexpr auto kLongestLock = std::chrono::seconds(15);

struct Found {
  Fd fd;
  std::string path;
  loop_info64 info;
};

bool same_file(const loop_info64& info, const struct stat& file) {
  return info.lo_device == file.st_dev && info.lo_inode == file.st_ino;
}

std::vector<std::string> bound_loops() {
  std::vector<std::string> paths;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/sys/block", ignored)) {
    const std::string name = entry.path().filename();
    if (name.starts_with("loop") && fs::exists(entry.path() / "loop", ignored))
      paths.push_back("/dev/" + name);
  }
  return paths;
}

std::vector<Found> loops_of(const struct stat& file, int flags) {
  std::vector<Found> found;
  for (const std::string& path : bound_loops()) {
    Fd fd(open(path.c_str(), flags | O_CLOEXEC));
    loop_info64 info{};
    if (fd.get() < 0 || ioctl(fd.get(), LOOP_GET_STATUS64, &info) < 0) continue;
    if (same_file(info, file)) found.push_back({std::move(fd), path, info});
  }
  return found;
}

bool whole_file(const loop_info64& info) { return info.lo_offset == 0 && info.lo_sizelimit == 0; }

bool is_read_only(const loop_info64& info) { return info.lo_flags & LO_FLAGS_READ_ONLY; }

Error in_use(const std::string& file, const Found& by, bool as_base) {
  return Error(EBUSY, file + " is already behind the loop device " + by.path +
                          (as_base ? ", which writes to it, so it cannot be a base"
                                   : ", so it cannot be written through another") +
                          "; detach that one (losetup -d " + by.path + ") and try again.");
}

// The loop device to share, if there is one; throws where one is in the way.
std::optional<Found> existing(const std::string& file, const struct stat& info,
                              LoopDevice::Use use) {
  const int flags = use == LoopDevice::Use::reattach ? O_RDWR : O_RDONLY;
  for (Found& loop : loops_of(info, flags)) {
    switch (use) {
      case LoopDevice::Use::top: throw in_use(file, loop, false);
      case LoopDevice::Use::base:
        if (!is_read_only(loop.info)) throw in_use(file, loop, true);
        if (whole_file(loop.info)) return std::move(loop);
        break;
      case LoopDevice::Use::reattach:
        if (!is_read_only(loop.info) && whole_file(loop.info)) return std::move(loop);
        break;
    }
  }
  if (use == LoopDevice::Use::reattach)
    throw Error(ENOENT, "No loop device holds " + file +
                            " any more, so the device that was attached over it cannot be served "
                            "on; detach it and attach it anew.");
  return std::nullopt;
}

Fd open_file(const std::string& file, bool writable, struct stat* info) {
  if (stat(file.c_str(), info) < 0)
    throw Error(errno, file + " cannot be opened: " + errno_text(errno) + ".");
  if (!S_ISREG(info->st_mode)) throw Error(EINVAL, file + " is not a regular file.");
  Fd fd(open(file.c_str(), (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC));
  if (fd.get() < 0)
    throw Error(errno, file + " cannot be opened for " + (writable ? "writing" : "reading") + ": " +
                           errno_text(errno) + ".");
  if (fstat(fd.get(), info) < 0) throw system_error(errno, "Looking at " + file + " failed");
  return fd;
}

// A loop device hides what is behind the last whole sector.
void require_sectors(const struct stat& info, const std::string& file) {
  if (info.st_size == 0 || info.st_size % 512 != 0)
    throw Error(EINVAL, file + " has " + std::to_string(info.st_size) +
                            " bytes, which is no whole number of 512-byte sectors; extend it "
                            "(truncate -s %512 FILE) and try again.");
}

uint32_t loop_block_size(int fd, const struct stat& info) {
  const uint32_t block = direct_io_alignment(fd);
  return info.st_size % block == 0 ? block : 512;
}

bool is_bound(const std::string& name) {
  std::error_code ignored;
  return fs::exists(fs::path("/sys/block") / name / "loop", ignored);
}

// Linux before 6.15 does not announce a loop device, and udev has to name it as ours.
void announce(const std::string& name) {
  std::ofstream(fs::path("/sys/block") / name / "uevent") << "change";
}

// Whether the loop device is ours now; false: another has taken it. udev must not look at it for
// the sake of what it held before, which it may be about to do: it locks what it looks at.
bool configure_one(const Fd& fd, const std::string& name, const std::string& file,
                   const loop_config& config) {
  BackingMark mark(name);
  if (is_bound(name)) return false;
  mark.set();
  if (!lock_within(fd.get(), kLongestLock))
    throw Error(ETIMEDOUT, "/dev/" + name + ", which is to hold " + file +
                               ", is locked by another program for too long. lslocks says which; "
                               "udev's workers do so for a moment.");
  const bool done = ioctl(fd.get(), LOOP_CONFIGURE, &config) == 0;
  const int code = errno;
  if (done) mark.keep();
  flock(fd.get(), LOCK_UN);
  if (done) announce(name);
  if (!done && code != EBUSY)
    throw system_error(code, "Putting " + file + " behind /dev/" + name + " failed");
  return done;
}

// A number from LOOP_CTL_GET_FREE may be taken by another before we configure it.
Found configure(int file_fd, const std::string& file, bool writable, uint32_t block) {
  const Fd control(open("/dev/loop-control", O_RDWR | O_CLOEXEC));
  if (control.get() < 0)
    throw Error(errno, "/dev/loop-control cannot be opened (" + errno_text(errno) +
                           "), so the file " + file +
                           " cannot become a block device; load the module: modprobe loop.");
  loop_config config{};
  config.fd = static_cast<uint32_t>(file_fd);
  config.block_size = block;
  config.info.lo_flags =
      LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO | (writable ? 0 : LO_FLAGS_READ_ONLY);
  file.copy(reinterpret_cast<char*>(config.info.lo_file_name), LO_NAME_SIZE - 1);
  for (int attempt = 0; attempt < 64; ++attempt) {
    const int number = ioctl(control.get(), LOOP_CTL_GET_FREE);
    if (number < 0) throw system_error(errno, "Finding a free loop device for " + file + " failed");
    const std::string name = "loop" + std::to_string(number), path = "/dev/" + name;
    Fd fd(open(path.c_str(), (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC));
    if (fd.get() < 0) throw system_error(errno, "Opening " + path + " for " + file + " failed");
    if (configure_one(fd, name, file, config)) return {std::move(fd), path, config.info};
  }
  throw Error(EBUSY, "No loop device for " + file +
                         " could be had in 64 attempts: another program takes them as fast.");
}

}  // namespace

LoopDevice::LoopDevice(int fd, std::string path, std::string file)
    : fd_(fd), path_(std::move(path)), file_(std::move(file)) {
  loop_info64 info{};
  if (ioctl(fd_, LOOP_GET_STATUS64, &info) == 0) direct_ = info.lo_flags & LO_FLAGS_DIRECT_IO;
}

LoopDevice::~LoopDevice() { close(fd_); }

std::shared_ptr<LoopDevice> LoopDevice::attach(const std::string& path, Use use,
                                               const std::string& shown) {
  const bool writable = use != Use::base;
  const std::string& file = shown.empty() ? path : shown;
  struct stat info {};
  const Fd source = open_file(path, writable, &info);
  if (shown.empty()) require_sectors(info, file);
  if (auto loop = existing(file, info, use)) {
    std::shared_ptr<LoopDevice> device(new LoopDevice(loop->fd.release(), loop->path, file));
    device->shared_ = true;
    return device;
  }
  const uint32_t block = loop_block_size(source.get(), info);
  Found loop = configure(source.get(), file, writable, block);
  return std::shared_ptr<LoopDevice>(new LoopDevice(loop.fd.release(), loop.path, file));
}

std::string LoopDevice::find(const std::string& file) {
  struct stat info {};
  if (stat(file.c_str(), &info) < 0) return {};
  const auto found = loops_of(info, O_RDONLY);
  return found.empty() ? std::string() : found.front().path;
}

std::optional<LoopDevice::File> LoopDevice::file_of(dev_t loop) {
  const std::string name = block_name(loop);
  if (!name.starts_with("loop") || !is_bound(name)) return std::nullopt;
  const Fd fd(open(("/dev/" + name).c_str(), O_RDONLY | O_CLOEXEC));
  loop_info64 info{};
  if (fd.get() < 0 || ioctl(fd.get(), LOOP_GET_STATUS64, &info) < 0 || !whole_file(info))
    return std::nullopt;
  return File{info.lo_device, info.lo_inode};
}

}  // namespace cowd
