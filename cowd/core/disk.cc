// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/disk.hh"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "cowd/core/bounce.hh"
#include "cowd/core/direct_io.hh"
#include "cowd/core/errno_name.hh"
#include "cowd/core/semaphore.hh"

namespace cowd {

// Shared with the coroutines under way, so that a BlockDisk may go before they end.
class DiskState {
 public:
  ~DiskState() {
    if (fd >= 0) close(fd);
  }

  std::shared_ptr<AsyncIo> io;
  std::string name;
  int fd = -1;
  bool writable = false;
  dev_t device = 0;
  uint32_t block_size = 512;
  std::atomic<uint64_t> size{0};
  bool file = false;  // a regular one
  int64_t modified = 0;
  uint64_t padded = 0;  // bytes up to the end of the last block that are not in the file
  AsyncSemaphore ways{BlockDisk::kWays};

  void open_path(const std::string& path, BlockDisk::Open how);
  void ask_geometry();
  void set_size(uint64_t bytes);
  void check_range(const char* verb, uint64_t offset, size_t len) const;
  void check_write(uint64_t offset, size_t len) const;
  [[noreturn]] void fail(const char* verb, uint64_t offset, size_t len, int64_t result) const;
};

namespace {

// Read-only: closing it after writing would have udev look at the device again.
bool claimed(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC | O_NONBLOCK);
  if (fd >= 0) close(fd);
  return fd < 0 && errno == EBUSY;
}

Error not_a_disk(const std::string& path, mode_t mode) {
  const char* what = S_ISDIR(mode)    ? "a directory"
                     : S_ISCHR(mode)  ? "a character device"
                     : S_ISFIFO(mode) ? "a pipe"
                                      : "a socket";
  return Error(ENOTBLK, path + " is " + what + ", not a block device or a file.");
}

Error cannot_open(const std::string& path, int code) {
  if (code == EROFS || code == EACCES || code == EPERM)
    return Error(code, path + " cannot be opened for this: " + errno_text(code) +
                           ". Check its permissions and whether it is read-only.");
  return system_error(code, "Opening " + path + " failed");
}

uint64_t ask_size(int fd, const struct stat& info, const std::string& name) {
  if (!S_ISBLK(info.st_mode)) return static_cast<uint64_t>(info.st_size);
  uint64_t bytes = 0;
  if (ioctl(fd, BLKGETSIZE64, &bytes) < 0)
    throw system_error(errno, "Asking for the size of " + name + " failed");
  return bytes;
}

// The physical block size, which is what is written at once, unless the device's
// end does not fall on one.
uint32_t ask_block_size(int fd, const struct stat& info, uint64_t size, const std::string& name) {
  if (!S_ISBLK(info.st_mode)) return direct_io_alignment(fd);
  int logical = 512;
  unsigned physical = 512;
  if (ioctl(fd, BLKSSZGET, &logical) < 0 || ioctl(fd, BLKPBSZGET, &physical) < 0)
    throw system_error(errno, "Asking for the block size of " + name + " failed");
  if (logical > 4096)
    throw Error(EINVAL, name + " has logical blocks of " + std::to_string(logical) +
                            " bytes; only devices of 512 or 4096 can be used.");
  if (logical < 4096 && (physical < 4096 || size % 4096 != 0)) return 512;
  return 4096;
}

}  // namespace

void DiskState::open_path(const std::string& path, BlockDisk::Open how) {
  struct stat info {};
  if (stat(path.c_str(), &info) < 0)
    throw Error(errno, path + " cannot be opened: " + errno_text(errno) + ".");
  if (!S_ISBLK(info.st_mode) && !S_ISREG(info.st_mode)) throw not_a_disk(path, info.st_mode);
  if (how == BlockDisk::Open::writable_unclaimed && S_ISBLK(info.st_mode) && claimed(path))
    throw Error(EBUSY, path +
                           " is in use: a mounted file system, another device on top of it or "
                           "another program holds it. See lsblk, free it, and try again.");

  writable = how != BlockDisk::Open::read_only;
  const int flags = (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK;
  fd = open(path.c_str(), flags | O_DIRECT);
  if (fd < 0 && errno == EINVAL && S_ISREG(info.st_mode)) fd = open(path.c_str(), flags);
  if (fd < 0) throw cannot_open(path, errno);
  // O_NONBLOCK was against a pipe in its place since; for I/O it must not be there.
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
}

void DiskState::ask_geometry() {
  struct stat info {};
  if (fstat(fd, &info) < 0) throw system_error(errno, "Looking at " + name + " failed");
  if (!S_ISBLK(info.st_mode) && !S_ISREG(info.st_mode)) throw not_a_disk(name, info.st_mode);
  device = S_ISBLK(info.st_mode) ? info.st_rdev : 0;
  file = S_ISREG(info.st_mode);
  modified = file ? info.st_mtime : 0;
  const uint64_t bytes = ask_size(fd, info, name);
  block_size = ask_block_size(fd, info, bytes, name);
  set_size(bytes);

  int locked = 0;
  if (writable && device && ioctl(fd, BLKROGET, &locked) == 0 && locked)
    throw Error(EROFS, name +
                           " is a read-only block device; make it writable (lvchange -prw, "
                           "blockdev --setrw) or name another.");
}

// A file may end within a block, which then ends with zeroes; whoever writes that makes it whole.
void DiskState::set_size(uint64_t bytes) {
  const uint64_t behind = bytes % block_size;
  padded = file && behind ? block_size - behind : 0;
  size = padded ? bytes + padded : bytes - behind;
}

void DiskState::check_range(const char* verb, uint64_t offset, size_t len) const {
  const auto where = [&] {
    return std::string(verb) + " " + std::to_string(len) + " bytes at " + std::to_string(offset) +
           " of " + name;
  };
  if (offset % block_size != 0 || len % block_size != 0)
    throw Error(EINVAL, where() + " is not aligned to its blocks of " + std::to_string(block_size) +
                            " bytes: this is a defect of the format plugin.");
  const uint64_t end = size.load();
  if (offset > end || len > end - offset)
    throw Error(ENXIO, where() + " would pass its end: it has " + std::to_string(end) +
                           " bytes. Either it shrank or the image on it is damaged.");
}

void DiskState::fail(const char* verb, uint64_t offset, size_t len, int64_t result) const {
  const std::string where = std::string(verb) + " " + std::to_string(len) + " bytes at " +
                            std::to_string(offset) + " of " + name;
  if (result >= 0)
    throw Error(EIO, where + " ended after " + std::to_string(result) +
                         " bytes: the device has become smaller.");
  throw system_error(static_cast<int>(-result), where + " failed");
}

BlockDisk::BlockDisk(std::shared_ptr<DiskState> state) : state_(std::move(state)) {}

BlockDisk::~BlockDisk() = default;

std::shared_ptr<BlockDisk> BlockDisk::open(std::shared_ptr<AsyncIo> io, const std::string& path,
                                           Open how) {
  auto state = std::make_shared<DiskState>();
  state->io = std::move(io);
  state->name = path;
  state->open_path(path, how);
  state->ask_geometry();
  return std::shared_ptr<BlockDisk>(new BlockDisk(std::move(state)));
}

// A read or write may end early, and goes on then: on a full file system, it is what follows that
// says why.
Task<> BlockDisk::read_at(uint64_t offset, std::span<std::byte> out) {
  const auto state = state_;
  state->check_range("Reading", offset, out.size());
  while (!out.empty()) {
    const size_t len = std::min(out.size(), kBounceLarge);
    const auto way = co_await state->ways.acquire();
    const auto buffer = take_bounce(len);
    char* const bytes = static_cast<char*>(static_cast<void*>(buffer.get()));
    for (size_t done = 0; done < len;) {
      const auto left = static_cast<uint32_t>(len - done);
      const int64_t n = co_await state->io->read(state->fd, offset + done, bytes + done, left);
      if (n > 0) done += static_cast<size_t>(n);
      if (n >= 0 && state->padded && offset + done + state->padded == state->size) {
        std::memset(bytes + done, 0, len - done);
        break;
      }
      if (n <= 0) state->fail("Reading", offset, len, n ? n : static_cast<int64_t>(done));
    }
    std::memcpy(out.data(), buffer.get(), len);
    out = out.subspan(len);
    offset += len;
  }
}

void DiskState::check_write(uint64_t offset, size_t len) const {
  if (!writable) throw Error(EROFS, name + " was opened read-only and is not written to.");
  check_range("Writing", offset, len);
}

Task<> BlockDisk::write_at(uint64_t offset, std::span<const std::byte> in) {
  const auto state = state_;
  state->check_write(offset, in.size());
  while (!in.empty()) {
    const size_t len = std::min(in.size(), kBounceLarge);
    const auto way = co_await state->ways.acquire();
    const auto buffer = take_bounce(len);
    std::memcpy(buffer.get(), in.data(), len);
    const char* const bytes = static_cast<char*>(static_cast<void*>(buffer.get()));
    for (size_t done = 0; done < len;) {
      const auto left = static_cast<uint32_t>(len - done);
      const int64_t n = co_await state->io->write(state->fd, offset + done, bytes + done, left);
      if (n <= 0) state->fail("Writing", offset, len, n ? n : static_cast<int64_t>(done));
      done += static_cast<size_t>(n);
    }
    in = in.subspan(len);
    offset += len;
  }
}

Task<> BlockDisk::write_durably(uint64_t offset, std::span<const std::byte> in) {
  if (in.empty() || in.size() > kBounceLarge) {
    co_await Disk::write_durably(offset, in);
    co_return;
  }
  const auto state = state_;
  state->check_write(offset, in.size());
  const auto len = static_cast<uint32_t>(in.size());
  const auto way = co_await state->ways.acquire();
  const auto buffer = take_bounce(len);
  std::memcpy(buffer.get(), in.data(), len);
  const char* const bytes = static_cast<char*>(static_cast<void*>(buffer.get()));
  for (uint32_t done = 0; done < len;) {
    const int64_t n =
        co_await state->io->write_durably(state->fd, offset + done, bytes + done, len - done);
    if (n <= 0) state->fail("Writing", offset, len, n ? n : static_cast<int64_t>(done));
    done += static_cast<uint32_t>(n);
  }
}

Task<> BlockDisk::flush() {
  const auto state = state_;
  if (!state->writable) co_return;
  const auto way = co_await state->ways.acquire();
  const int64_t n = co_await state->io->sync(state->fd);
  if (n < 0) throw system_error(static_cast<int>(-n), "Flushing " + state->name + " failed");
}

uint64_t BlockDisk::size() const { return state_->size; }

uint32_t BlockDisk::block_size() const { return state_->block_size; }

bool BlockDisk::read_only() const { return !state_->writable; }

const std::string& BlockDisk::name() const { return state_->name; }

uint64_t BlockDisk::refresh_size() {
  struct stat info {};
  if (fstat(state_->fd, &info) < 0)
    throw system_error(errno, "Looking at " + state_->name + " failed");
  state_->set_size(ask_size(state_->fd, info, state_->name));
  return state_->size;
}

// For tools: what is served lies behind a loop device.
Task<> BlockDisk::resize(uint64_t bytes) {
  const auto state = state_;
  if (!state->file || !state->writable) {
    co_await Disk::resize(bytes);
    co_return;
  }
  const uint64_t length = (bytes + state->block_size - 1) / state->block_size * state->block_size;
  if (ftruncate(state->fd, static_cast<off_t>(length)) < 0)
    throw system_error(errno,
                       "Giving " + state->name + " " + std::to_string(length) + " bytes failed");
  state->set_size(length);
}

int64_t BlockDisk::modified() const { return state_->modified; }

dev_t BlockDisk::device() const { return state_->device; }

int BlockDisk::fd() const { return state_->fd; }

void BlockDisk::set_name(const std::string& name) { state_->name = name; }

}  // namespace cowd
