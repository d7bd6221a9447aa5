// SPDX-License-Identifier: GPL-2.0-or-later
#include <utility>

#include "cowd/core/backing.hh"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cowd/core/errno_name.hh"
#include "cowd/core/loop.hh"

namespace cowd {

namespace {

[[noreturn]] void refuse_kind(const Component& component) {
  const char* what = component.kind == Component::Kind::nbd     ? "NBD exports"
                     : component.kind == Component::Kind::iscsi ? "iSCSI targets"
                                                                : "transient stores";
  throw Error(EOPNOTSUPP, component.text() + ": " + what +
                              " are not served by this version of cowd; name a block device or a "
                              "file.");
}

struct stat look_at(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) == 0) return info;
  if (errno == ENOENT)
    throw Error(ENOENT,
                path + " does not exist. Check the path, and whether its volume is active.");
  throw Error(errno, path + " cannot be looked up: " + errno_text(errno) + ".");
}

BlockDisk::Open mode_for(BackingUse use) {
  switch (use) {
    case BackingUse::base:
    case BackingUse::look: return BlockDisk::Open::read_only;
    case BackingUse::top:
    case BackingUse::change: return BlockDisk::Open::writable_unclaimed;
    case BackingUse::reattach: break;
  }
  return BlockDisk::Open::writable;
}

Backing open_file_as_it_is(std::shared_ptr<AsyncIo> io, const std::string& path, BackingUse use) {
  const std::string loop = use == BackingUse::change ? LoopDevice::find(path) : std::string();
  if (!loop.empty())
    throw Error(EBUSY, path + " is in use behind the loop device " + loop +
                           "; detach what uses it, then try again.");
  return {BlockDisk::open(std::move(io), path, mode_for(use)), path, 0, nullptr};
}

Backing open_through_loop(std::shared_ptr<AsyncIo> io, const std::string& path, BackingUse use) {
  const auto loop = LoopDevice::attach(path, use == BackingUse::base  ? LoopDevice::Use::base
                                             : use == BackingUse::top ? LoopDevice::Use::top
                                                                      : LoopDevice::Use::reattach);
  // The loop device we made is ours, whoever holds it: no claim to try.
  const auto how = use == BackingUse::base ? BlockDisk::Open::read_only : BlockDisk::Open::writable;
  auto disk = BlockDisk::open(std::move(io), loop->path(), how);
  disk->set_name(path);
  const dev_t dev = disk->device();
  return {std::move(disk), loop->path(), dev, loop};
}

}  // namespace

Backing open_backing(std::shared_ptr<AsyncIo> io, const Component& component, BackingUse use) {
  if (component.kind != Component::Kind::path) refuse_kind(component);
  const struct stat info = look_at(component.path);
  if (S_ISREG(info.st_mode)) {
    if (use == BackingUse::look || use == BackingUse::change)
      return open_file_as_it_is(std::move(io), component.path, use);
    return open_through_loop(std::move(io), component.path, use);
  }
  auto disk = BlockDisk::open(std::move(io), component.path, mode_for(use));
  const dev_t dev = disk->device();
  return {std::move(disk), component.path, dev, nullptr};
}

bool backing_in_use(const Component& component) {
  struct stat info {};
  if (component.kind != Component::Kind::path || stat(component.path.c_str(), &info) < 0)
    return false;
  if (S_ISREG(info.st_mode)) return !LoopDevice::find(component.path).empty();
  if (!S_ISBLK(info.st_mode)) return false;
  const int fd = open(component.path.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC | O_NONBLOCK);
  if (fd >= 0) close(fd);
  return fd < 0 && errno == EBUSY;
}

uint64_t backing_size(const std::string& path) {
  return BlockDisk::open(nullptr, path, BlockDisk::Open::read_only)->size();
}

bool same_backing(const Component& a, const Component& b) {
  if (a == b) return true;
  if (a.kind != Component::Kind::path || b.kind != Component::Kind::path) return false;
  struct stat one {
  }, other{};
  if (stat(a.path.c_str(), &one) < 0 || stat(b.path.c_str(), &other) < 0) return false;
  if (S_ISBLK(one.st_mode) && S_ISBLK(other.st_mode)) return one.st_rdev == other.st_rdev;
  return one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

}  // namespace cowd
