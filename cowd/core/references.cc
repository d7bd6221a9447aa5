// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/references.hh"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/blocking.hh"
#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/core/fd.hh"
#include "cowd/core/file_length.hh"
#include "cowd/core/loop.hh"

namespace cowd {

struct FoundFile {
  std::shared_ptr<Fd> handle;
  std::string path;  // as people know it
  struct stat info {};
  bool made = false;
  std::string by_fd() const { return "/proc/self/fd/" + std::to_string(handle->get()); }
};

namespace {

using Found = FoundFile;

std::mutex roots_mutex;
std::vector<std::string> all_roots;

std::string roots_in_words(const std::string& folder) {
  const std::lock_guard lock(roots_mutex);
  std::string words = folder;
  for (const std::string& root : all_roots) words += (words.empty() ? "" : ", ") + root;
  return words.empty() ? "no folder (paths.reference_roots in cowd.toml is empty)" : words;
}

// json:, file:, nbd://, nbd:...: QEMU takes these for more than a path.
bool is_uri(const std::string& path) {
  const size_t at = path.find(':');
  return at != std::string::npos && at > 0 &&
         path.find_first_not_of(
             "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+.-") == at;
}

// Below one folder, by the kernel's own rules: ".." may not leave it, nothing on the way may
// be a symbolic link.
int open_beneath(const std::string& folder, const std::string& relative, bool writable,
                 bool make = false) {
  const int dir = open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (dir < 0) return -errno;
  open_how how{};
  how.flags =
      static_cast<uint64_t>((writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (make) how.flags |= O_CREAT | O_EXCL, how.mode = 0600;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  const long fd = syscall(SYS_openat2, dir, relative.c_str(), &how, sizeof how);
  const int result = fd < 0 ? -errno : static_cast<int>(fd);
  close(dir);
  return result;
}

// The path below `folder`, or "" if it is not there.
std::string below(const std::string& folder, const std::string& path) {
  const std::string prefix = folder.ends_with('/') ? folder : folder + "/";
  return path.size() > prefix.size() && path.starts_with(prefix) ? path.substr(prefix.size()) : "";
}

Error refused(const std::string& from, const std::string& path, int code, const std::string& why) {
  return Error(code, from + " names '" + path + "', " + why);
}

Error not_opened(const std::string& from, const std::string& path, const std::string& folder,
                 int code) {
  if (code == ENOENT)
    return refused(from, path, ENOENT,
                   "which does not exist. Put it back, or change the reference.");
  if (code == ELOOP)
    return refused(
        from, path, EPERM,
        "which is, or goes through, a symbolic link; those are not followed. Name the file "
        "itself.");
  if (code == EXDEV)
    return refused(from, path, EPERM,
                   "which is outside of the folders where files may lie that an image names: " +
                       roots_in_words(folder) +
                       ". Move it there, or add its folder to paths.reference_roots in cowd.toml.");
  return refused(from, path, code,
                 "which cannot be opened: " + std::string(errno_text(code)) + ".");
}

std::vector<std::string> folders_for(const std::string& folder) {
  const std::lock_guard lock(roots_mutex);
  std::vector<std::string> folders;
  if (!folder.empty()) folders.push_back(folder);
  folders.insert(folders.end(), all_roots.begin(), all_roots.end());
  return folders;
}

void require_plain(const std::string& from, const std::string& path) {
  if (path.empty() || path.find('\0') != std::string::npos)
    throw refused(from, path, EINVAL, "which is no file name.");
  if (is_uri(path))
    throw refused(from, path, EPERM,
                  "which is no plain path; what an image names is only opened as a file. Name the "
                  "file by its path.");
}

Found find(const std::string& from, const std::string& folder, const std::string& path,
           bool writable) {
  require_plain(from, path);
  int code = EXDEV, fd = -1;
  Found found;
  if (path[0] != '/') {
    // Relative to the image alone.
    const int result = folder.empty() ? -EXDEV : open_beneath(folder, path, writable);
    fd = std::max(result, -1);
    found.path = (std::filesystem::path(folder) / path).lexically_normal();
    code = -result;
  } else {
    for (const std::string& each : folders_for(folder)) {
      const std::string relative = below(each, path);
      if (relative.empty()) continue;
      const int result = open_beneath(each, relative, writable);
      fd = std::max(result, -1);
      found.path = path;
      code = -result;
      if (result >= 0) break;
    }
  }
  found.handle = std::make_shared<Fd>(fd);
  if (fd < 0) throw not_opened(from, path, folder, code);
  if (fstat(fd, &found.info) < 0) throw not_opened(from, path, folder, errno);
  if (!S_ISREG(found.info.st_mode))
    throw refused(from, path, EPERM,
                  "which is no regular file; devices and the like are never opened for an image.");
  return found;
}

std::shared_ptr<Fd> open_folder(const std::string& folder) {
  return std::make_shared<Fd>(open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
}

// Beside the image. With `force` it may be there already.
Found make_file(const std::string& from, const std::string& folder, const std::string& name,
                bool force) {
  require_plain(from, name);
  if (folder.empty() || name.find('/') != std::string::npos)
    throw refused(from, name, EINVAL,
                  "which would not lie in the folder of the image: files are made only there.");
  const int fd = open_beneath(folder, name, true, true);
  if (fd == -EEXIST && force) return find(from, folder, name, true);
  Found found;
  found.path = std::filesystem::path(folder) / name;
  if (fd == -EEXIST)
    throw Error(EEXIST, found.path + " is there already: to lose what it holds, say --force.");
  if (fd < 0) throw system_error(-fd, "Making the file " + found.path + " failed");
  found.handle = std::make_shared<Fd>(fd);
  found.made = true;
  fstat(fd, &found.info);
  return found;
}

std::shared_ptr<Backing> open_found(std::shared_ptr<AsyncIo> io, const Found& found,
                                    FileReferences::Purpose purpose, bool writable) {
  using Purpose = FileReferences::Purpose;
  auto backing = std::make_shared<Backing>();
  if (purpose == Purpose::tool) {
    const std::string loop = writable ? LoopDevice::find(found.by_fd()) : std::string();
    if (!loop.empty())
      throw Error(EBUSY, found.path + " is in use behind the loop device " + loop +
                             "; detach what uses it, then try again.");
    backing->disk =
        BlockDisk::open(std::move(io), found.by_fd(),
                        writable ? BlockDisk::Open::writable : BlockDisk::Open::read_only);
    backing->device = found.path;
  } else {
    const auto use = !writable                      ? LoopDevice::Use::base
                     : purpose == Purpose::reattach ? LoopDevice::Use::reattach
                                                    : LoopDevice::Use::top;
    const auto loop = LoopDevice::attach(found.by_fd(), use, found.path);
    // What is only read is read from the file itself: a loop device hides a last piece of a
    // sector, and some formats have their tables there.
    backing->disk =
        BlockDisk::open(std::move(io), writable ? loop->path() : found.by_fd(),
                        writable ? BlockDisk::Open::writable : BlockDisk::Open::read_only);
    backing->device = loop->path();
    struct stat info {};
    if (stat(loop->path().c_str(), &info) < 0)
      throw Error(errno, "Looking at " + loop->path() + " failed: " + errno_text(errno) + ".");
    backing->dev = info.st_rdev;
    backing->keepalive = loop;
  }
  backing->disk->set_name(found.path);
  return backing;
}

}  // namespace

void set_reference_roots(std::vector<std::string> roots) {
  const std::lock_guard lock(roots_mutex);
  all_roots = std::move(roots);
}

FileReferences::FileReferences(std::shared_ptr<AsyncIo> io, PluginLoader* plugins, Purpose purpose,
                               const Component& component, const std::shared_ptr<Disk>& top,
                               Claim claim, uint64_t metadata_cache)
    : io_(std::move(io)),
      plugins_(plugins),
      purpose_(purpose),
      claim_(std::move(claim)),
      metadata_cache_(metadata_cache) {
  File file;
  struct stat info {};
  if (component.kind == Component::Kind::path && stat(component.path.c_str(), &info) == 0 &&
      S_ISREG(info.st_mode)) {
    // The specification is the operator's: links in it are followed.
    std::error_code error;
    const auto real = std::filesystem::canonical(component.path, error);
    if (!error) file.folder = real.parent_path();
    file.device = info.st_dev;
    file.inode = info.st_ino;
    file.odd = info.st_size % 512 != 0;
  }
  files_.emplace_back(top.get(), std::move(file));
}

const FileReferences::File& FileReferences::file_of(const Disk& disk) const {
  for (const auto& [each, file] : files_)
    if (each == &disk) return file;
  throw Error(EINVAL, disk.name() + " names others but was not opened with them.");
}

const Backing* FileReferences::backing_of(const Disk* disk) const {
  for (const auto& [each, file] : files_)
    if (each == disk && file.backing) return file.backing.get();
  return nullptr;
}

FileReferences::~FileReferences() {
  for (const Made& each : made_) unlinkat(each.folder->get(), each.name.c_str(), 0);
}

Task<std::shared_ptr<Disk>> FileReferences::disk(const Disk& from, std::string path,
                                                 bool writable) {
  co_return co_await open(from, std::move(path), writable, nullptr);
}

Task<std::shared_ptr<Disk>> FileReferences::growing(const Disk& from, std::string path, Room room) {
  co_return co_await open(from, std::move(path), true, std::move(room));
}

Task<std::shared_ptr<Disk>> FileReferences::open(const Disk& from, std::string path, bool writable,
                                                 Room room) {
  const auto self = shared_from_this();
  const std::string name = from.name();
  require_one_more(name, path);
  const std::string folder = file_of(from).folder;
  std::function<FoundFile()> look = [name, folder, path, writable, taken = taken()]() {
    FoundFile found = find(name, folder, path, writable);
    for (const auto& [device, inode] : taken)
      if (inode && found.info.st_dev == device && found.info.st_ino == inode)
        throw refused(name, path, ELOOP,
                      "which is part of the same disk already: an image cannot lie on itself. "
                      "Change the reference (qemu-img rebase -u).");
    if (found.info.st_size == 0) throw refused(name, path, EINVAL, "which is empty.");
    return found;
  };
  const FoundFile found = co_await off_strand(std::move(look));
  if (claim_) {
    Component component;
    component.path = found.path;
    co_await claim_(component, writable);
  }
  File file = file_from(found);
  if (room) file.grows = found.handle;
  if (room && purpose_ == Purpose::attach) file.grown_from = co_await make_room(found, room);
  // In the list before it can fail, so that its length is restored then.
  const size_t at = files_.size();
  files_.emplace_back(nullptr, std::move(file));
  std::function<std::shared_ptr<Backing>()> work = [io = io_, purpose = purpose_, found,
                                                    writable]() {
    return open_found(io, found, purpose, writable);
  };
  std::shared_ptr<Backing> backing = co_await off_strand(std::move(work));
  const std::shared_ptr<Disk> disk = backing->disk;
  files_[at].second.backing = std::move(backing);
  files_[at].first = disk.get();
  co_return disk;
}

void FileReferences::require_one_more(const std::string& from, const std::string& path) const {
  if (files_.size() <= kMostFiles) return;
  throw refused(from, path, EMLINK,
                "and that is one file too many: a disk may lie on " + std::to_string(kMostFiles) +
                    ". Commit or flatten some of the chain.");
}

std::vector<std::pair<dev_t, ino_t>> FileReferences::taken() const {
  std::vector<std::pair<dev_t, ino_t>> all;
  for (const auto& [each, file] : files_) all.emplace_back(file.device, file.inode);
  return all;
}

FileReferences::File FileReferences::file_from(const FoundFile& found) {
  File file;
  file.folder = std::filesystem::path(found.path).parent_path();
  file.device = found.info.st_dev;
  file.inode = found.info.st_ino;
  file.odd = found.info.st_size % 512 != 0;
  return file;
}

// Before there is a loop device, whose length does not change. Returns how long it was, 0 if it
// is so still.
Task<uint64_t> FileReferences::make_room(FoundFile found, Room room) {
  std::function<std::shared_ptr<BlockDisk>()> work = [io = io_, found]() {
    auto file = BlockDisk::open(io, found.by_fd(), BlockDisk::Open::writable);
    file->set_name(found.path);
    return file;
  };
  const std::shared_ptr<Disk> file = co_await off_strand(std::move(work));
  const uint64_t bytes = co_await room(file);
  if (bytes <= file->size()) co_return 0;
  co_await file->resize(bytes);
  co_return static_cast<uint64_t>(found.info.st_size);
}

Task<std::shared_ptr<Disk>> FileReferences::make(const Disk& from, std::string path, bool force) {
  const auto self = shared_from_this();
  const std::string name = from.name();
  require_one_more(name, path);
  const std::string folder = file_of(from).folder;
  const auto made = std::make_shared<Made>();
  std::function<FoundFile()> work = [name, folder, path, force, made]() {
    FoundFile found = make_file(name, folder, path, force);
    if (found.made) {
      made->folder = open_folder(folder);
      made->name = path;
    }
    return found;
  };
  const FoundFile found = co_await off_strand(std::move(work));
  if (made->folder) made_.push_back(*made);
  std::function<std::shared_ptr<Backing>()> open_it = [io = io_, found]() {
    return open_found(io, found, Purpose::tool, true);
  };
  File file = file_from(found);
  file.backing = co_await off_strand(std::move(open_it));
  const std::shared_ptr<Disk> disk = file.backing->disk;
  files_.emplace_back(disk.get(), std::move(file));
  co_await disk->resize(0);
  co_return disk;
}

void FileReferences::cut(const Disk* disk, uint64_t bytes) const {
  for (const auto& [each, file] : files_) {
    if (each != disk || !file.grows) continue;
    struct stat info {};
    if (fstat(file.grows->get(), &info) < 0 || static_cast<uint64_t>(info.st_size) <= bytes) return;
    if (ftruncate(file.grows->get(), static_cast<off_t>(bytes)) < 0)
      throw Error(errno, disk->name() + " stays longer than it must be, " +
                             std::to_string(info.st_size) + " bytes: " + errno_text(errno) + ".");
  }
}

void FileReferences::restore_lengths() const {
  for (const auto& [disk, file] : files_)
    if (file.grown_from) cut_unwritten(file.grows->get(), file.grown_from);
}

// For an image that is given its base elsewhere, by the specification: the one that it names.
Task<std::shared_ptr<Disk>> FileReferences::base_of(const FormatDescriptor& plugin,
                                                    std::shared_ptr<Disk> top) {
  const nlohmann::json info = co_await plugin.info(top);
  const auto base = info.find("base");
  if (base == info.end()) co_return nullptr;
  co_return co_await disk(*top, base->get<std::string>(), false);
}

Task<std::unique_ptr<Image>> FileReferences::image(const Disk& from, std::string path,
                                                   std::string format) {
  const auto self = shared_from_this();
  if (format.empty())
    throw refused(from.name(), path, EINVAL,
                  "without saying in which format it is, and a format is never guessed. Write it "
                  "into the image: qemu-img rebase -u -b FILE -F FORMAT.");
  std::function<const FormatDescriptor*()> find_format = [plugins = plugins_, format] {
    return &plugins->load(format);
  };
  const FormatDescriptor* plugin = co_await off_strand(std::move(find_format));
  OpenRequest request;
  request.top = co_await disk(from, path, false);
  if (format == "raw" && file_of(*request.top).odd)
    throw refused(from.name(), path, EINVAL,
                  "which is raw and no whole number of 512-byte sectors long. Extend it (truncate "
                  "-s %512 FILE).");
  if (plugin->wants_base) request.base = co_await base_of(*plugin, request.top);
  request.read_only = true;
  request.references = self;
  // The nearest to the top is asked most.
  request.metadata_cache = metadata_cache_ /= 2;
  co_return co_await plugin->open(std::move(request));
}

}  // namespace cowd
