// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/backing.hh"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <functional>
#include <mutex>
#include <utility>

#include "cowd/core/backing_mark.hh"
#include "cowd/core/disk_options.hh"
#include "cowd/core/errno_name.hh"
#include "cowd/core/iscsi.hh"
#include "cowd/core/loop.hh"
#include "cowd/core/nbd.hh"
#include "cowd/core/thread.hh"

namespace cowd {

namespace {

std::mutex settings_mutex;
BackingSettings settings_now;

struct stat look_at(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) == 0) return info;
  if (errno == ENOENT)
    throw Error(ENOENT,
                path + " does not exist. Check the path, and whether its volume is active.");
  throw Error(errno, path + " cannot be looked up: " + errno_text(errno) + ".");
}

BackingSettings current_settings() {
  const std::lock_guard lock(settings_mutex);
  return settings_now;
}

// What the file of a named disk says goes before what is so for all.
BackingSettings settings_for(const DiskOptions& options) {
  BackingSettings settings = current_settings();
  if (options.loss) settings.loss_seconds = options.loss->seconds;
  return settings;
}

BlockDisk::Open mode_for(BackingUse use) {
  switch (use) {
    case BackingUse::base:
    case BackingUse::image:
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

// `owned`, whose last user lets go of it on a thread: the last close of a device on the
// network may wait for its server, and the last user may be on a strand.
template <typename T>
std::shared_ptr<T> let_go_elsewhere(std::shared_ptr<T> owned, std::shared_ptr<void> keeper,
                                    bool background) {
  T* const raw = owned.get();
  const auto let_go = [owned = std::move(owned), keeper = std::move(keeper),
                       background](T*) mutable {
    std::function<void()> work = [disk = std::move(owned), device = std::move(keeper)]() mutable {
      disk.reset();
      device.reset();
    };
    // Where there is no thread for it, it is let go of here.
    if (background)
      start_thread(std::move(work), 256 << 10);
    else
      work();
  };
  return std::shared_ptr<T>(raw, let_go);
}

// `device` is the name it has on this host, `keeper` what holds it there.
Backing open_connected(std::shared_ptr<AsyncIo> io, const Component& component,
                       const std::string& device, std::shared_ptr<void> keeper, BackingUse use) {
  const bool background = current_settings().background;
  auto disk = BlockDisk::open(std::move(io), device, mode_for(use));
  disk->set_name(component.text());
  const dev_t dev = disk->device();
  std::shared_ptr<void> both = let_go_elsewhere(keeper, nullptr, background);
  return {let_go_elsewhere(std::move(disk), std::move(keeper), background), device, dev,
          std::move(both)};
}

Backing open_nbd(std::shared_ptr<AsyncIo> io, const Component& component, BackingUse use) {
  const DiskOptions options = disk_options(component, current_settings().disks_dir);
  auto device = NbdDevice::attach(component, settings_for(options), options);
  const std::string path = device->path();
  return open_connected(std::move(io), component, path, std::move(device), use);
}

Backing open_iscsi(std::shared_ptr<AsyncIo> io, const Component& component, BackingUse use) {
  const DiskOptions options = disk_options(component, current_settings().disks_dir);
  auto unit = IscsiUnit::attach(component, settings_for(options), options);
  const std::string path = unit->path();
  return open_connected(std::move(io), component, path, std::move(unit), use);
}

// A loop device hides what is behind the last whole sector, and there some formats have
// their tables: an image that is only read is read from the file itself, and mapped to the loop.
Backing open_image_through_loop(std::shared_ptr<AsyncIo> io, const std::string& path) {
  const auto loop = LoopDevice::attach(path, LoopDevice::Use::base, path);
  return {BlockDisk::open(std::move(io), path, BlockDisk::Open::read_only), loop->path(),
          look_at(loop->path()).st_rdev, loop};
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

void set_backing_settings(const BackingSettings& settings) {
  const std::lock_guard lock(settings_mutex);
  settings_now = settings;
}

void release_unused_backings() {
  IscsiUnit::release_unused();
  BackingMark::clean();
}

std::vector<std::string> own_backings() {
  std::vector<std::string> names = IscsiUnit::own_disks();
  for (auto& more : {BackingMark::loops(), NbdDevice::own_devices()})
    names.insert(names.end(), more.begin(), more.end());
  return names;
}

Backing open_backing(std::shared_ptr<AsyncIo> io, const Component& component, BackingUse use) {
  switch (component.kind) {
    case Component::Kind::path: break;
    case Component::Kind::nbd: return open_nbd(std::move(io), component, use);
    case Component::Kind::iscsi: return open_iscsi(std::move(io), component, use);
    case Component::Kind::transient:
      throw Error(EOPNOTSUPP, component.text() +
                                  " has no name of its own yet: cowd makes such a store when its "
                                  "disk is attached. Name a block device or a file.");
  }
  const struct stat info = look_at(component.path);
  if (S_ISREG(info.st_mode)) {
    if (use == BackingUse::look || use == BackingUse::change)
      return open_file_as_it_is(std::move(io), component.path, use);
    if (use == BackingUse::image) return open_image_through_loop(std::move(io), component.path);
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
  if (a.kind == Component::Kind::iscsi && b.kind == Component::Kind::iscsi)
    return iscsi_identity(a) == iscsi_identity(b);
  if (a.kind != Component::Kind::path || b.kind != Component::Kind::path) return false;
  struct stat one {
  }, other{};
  if (stat(a.path.c_str(), &one) < 0 || stat(b.path.c_str(), &other) < 0) return false;
  if (S_ISBLK(one.st_mode) && S_ISBLK(other.st_mode)) return one.st_rdev == other.st_rdev;
  return one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

}  // namespace cowd
