// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/transient_files.hh"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <set>

#include "cowd/core/bounce.hh"
#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/core/fd.hh"
#include "cowd/core/loop.hh"
#include "cowd/daemon/text.hh"
#include "formats/common/bytes.hh"
#include "formats/common/signatures.hh"
#include "formats/dscow/layout.hh"

namespace cowd::transient {

namespace {

constexpr int kNoteVersion = 1;
constexpr const char* kStoreEnd = ".store";
constexpr const char* kNoteEnd = ".json";
constexpr const char* kNewEnd = ".new";

bool write_all(int fd, const std::string& content) {
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t count = ::write(fd, content.data() + done, content.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += static_cast<size_t>(count);
  }
  return true;
}

std::string read_all(int fd) {
  std::string content;
  char part[4096];
  for (ssize_t count; (count = ::read(fd, part, sizeof part)) > 0 && content.size() < 65536;)
    content.append(part, static_cast<size_t>(count));
  return content;
}

// Past the page cache where the file system can: a loop device's writes go past it too.
Buffer head_of(int fd) {
  constexpr size_t kHead = 2 * dscow::kBlock;
  const auto head = take_bounce(kHead);
  std::fill_n(head.get(), kHead, std::byte{0});
  const int flags = fcntl(fd, F_GETFL);
  fcntl(fd, F_SETFL, flags | O_DIRECT);
  ssize_t count = pread(fd, head.get(), kHead, 0);
  fcntl(fd, F_SETFL, flags & ~O_DIRECT);
  if (count < 0 && errno == EINVAL) count = pread(fd, head.get(), kHead, 0);
  if (count < 0) throw system_error(errno, "Reading the head of a transient store failed");
  return Buffer(head.get(), head.get() + kHead);  // zeroes where the file ends before
}

// A lease is had only by the one who has the file open alone. File systems without leases have
// the loop devices left to ask.
bool opened_by_others(int fd) {
  if (fcntl(fd, F_SETLEASE, F_WRLCK) == 0) {
    fcntl(fd, F_SETLEASE, F_UNLCK);
    return false;
  }
  return errno == EAGAIN || errno == EBUSY;
}

}  // namespace

Directory::Directory(std::string path, std::string host_id)
    : path_(std::move(path)), host_id_(std::move(host_id)) {
  fd_ = open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  struct stat info {};
  if (fd_ < 0 || fstat(fd_, &info) < 0) {
    const int code = errno;
    if (fd_ >= 0) close(fd_);
    throw Error(code, text("The directory ", path_, " for transient stores cannot be opened: ",
                           errno_text(code), ". Make it (mkdir -m 700), or name another."));
  }
  if (info.st_uid == geteuid() && !(info.st_mode & (S_IWGRP | S_IWOTH))) return;
  close(fd_);
  throw Error(EPERM, text("The directory ", path_,
                          " cannot hold transient stores: others than root may write to it. Say "
                          "chown root and chmod go-w on it, or name another."));
}

Directory::~Directory() { close(fd_); }

Error Directory::failed(const std::string& what, const std::string& name) const {
  return Error(errno, text(what, " ", path_, "/", name, " failed: ", errno_text(errno), "."));
}

void Directory::sync() const {
  if (fsync(fd_) < 0) throw failed("Making the names durable in", "");
}

// --- notes ------------------------------------------------------------------

// The name of the temporary file has our host in it: on a shared file system another
// host may be writing its own.
void Directory::write_note(const Note& note) const {
  const TransientStore& store = note.store;
  const nlohmann::json json = {{"version", kNoteVersion},     {"uuid", store.uuid},
                               {"host", store.host_id},       {"boot", store.boot_id},
                               {"vm", store.binding.vm_uuid}, {"vdev", store.binding.vdev},
                               {"saved", store.saved},        {"bytes", store.bytes},
                               {"inode", note.inode},         {"created_at", store.created_at}};
  const std::string name = store.uuid + kNoteEnd;
  const std::string temporary = "." + store.uuid + "." + host_id_ + kNewEnd;
  if (unlinkat(fd_, temporary.c_str(), 0) < 0 && errno != ENOENT)
    throw failed("Clearing", temporary);
  const Fd fd(
      openat(fd_, temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (fd.get() < 0 || !write_all(fd.get(), json.dump(2) + "\n") || fsync(fd.get()) < 0 ||
      renameat(fd_, temporary.c_str(), fd_, name.c_str()) < 0) {
    const Error error = failed("Writing the note", name);
    unlinkat(fd_, temporary.c_str(), 0);
    throw error;
  }
  sync();
}

Directory::Note Directory::read_note(const std::string& uuid) const {
  const std::string name = uuid + kNoteEnd;
  const Fd fd(openat(fd_, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (fd.get() < 0) throw failed("Reading the note", name);
  Note note;
  TransientStore& store = note.store;
  try {
    const auto json = nlohmann::json::parse(read_all(fd.get()));
    if (json.at("version").get<int>() != kNoteVersion || json.at("uuid").get<std::string>() != uuid)
      throw Error(EUCLEAN, text("The note ", path_, "/", name, " is of another version or store."));
    store.uuid = uuid;
    store.where = path_;
    store.path = path_ + "/" + uuid + kStoreEnd;
    store.host_id = json.at("host").get<std::string>();
    store.boot_id = json.at("boot").get<std::string>();
    store.binding = {json.at("vm").get<std::string>(), json.at("vdev").get<std::string>()};
    store.saved = json.at("saved").get<bool>();
    store.bytes = json.at("bytes").get<uint64_t>();
    store.created_at = json.at("created_at").get<std::string>();
    note.inode = json.at("inode").get<uint64_t>();
  } catch (const nlohmann::json::exception& error) {
    throw Error(EUCLEAN, text("The note ", path_, "/", name, " is not what cowd writes there (",
                              error.what(), ")."));
  }
  return note;
}

// --- what there is ----------------------------------------------------------

std::vector<std::string> Directory::names() const {
  std::vector<std::string> names;
  const int copy = openat(fd_, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* stream = copy < 0 ? nullptr : fdopendir(copy);
  if (!stream) {
    const Error error = failed("Listing", "");
    if (copy >= 0) close(copy);
    throw error;
  }
  while (const dirent* entry = readdir(stream)) names.emplace_back(entry->d_name);
  closedir(stream);
  return names;
}

std::vector<TransientStore> Directory::list() const {
  std::set<std::string> uuids;
  for (const std::string& name : names()) {
    if (name.starts_with('.') && name.ends_with("." + host_id_ + kNewEnd))
      unlinkat(fd_, name.c_str(), 0);
    for (const std::string end : {kStoreEnd, kNoteEnd})
      if (name.ends_with(end) && parse_uuid(name.substr(0, name.size() - end.size())))
        uuids.insert(name.substr(0, name.size() - end.size()));
  }
  std::vector<TransientStore> stores;
  for (const std::string& uuid : uuids)
    if (auto store = find(uuid)) stores.push_back(std::move(*store));
  return stores;
}

std::optional<TransientStore> Directory::find(const std::string& uuid) const {
  struct stat info {};
  const bool noted = fstatat(fd_, (uuid + kNoteEnd).c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0;
  const bool there = fstatat(fd_, (uuid + kStoreEnd).c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0;
  if (!noted && !there) return std::nullopt;
  if (!noted) return orphan(uuid);
  try {
    Note note = read_note(uuid);
    if (!there || note.store.host_id != host_id_) return note.store;
    const Fd fd(
        openat(fd_, (uuid + kStoreEnd).c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    note.store.problem = why_not_ours(note, fd.get());
    return note.store;
  } catch (const Error& error) {
    TransientStore store = orphan(uuid);
    store.problem = error.what();
    return store;
  }
}

TransientStore Directory::orphan(const std::string& uuid) const {
  TransientStore store;
  store.uuid = uuid;
  store.where = path_;
  store.path = path_ + "/" + uuid + kStoreEnd;
  struct stat info {};
  if (stat(store.path.c_str(), &info) == 0) store.bytes = static_cast<uint64_t>(info.st_size);
  store.problem = text("The store ", store.path,
                       " has no note that says whose it is, so cowd leaves it alone; remove it "
                       "yourself if nobody needs it.");
  return store;
}

// A sentence if the open file is not the one of the note, or not what the note says.
std::string Directory::why_not_ours(const Note& note, int fd) const {
  const TransientStore& store = note.store;
  struct stat info {};
  std::string why;
  if (fd < 0 || fstat(fd, &info) < 0)
    why = text("it cannot be opened (", errno_text(errno), ")");
  else if (!S_ISREG(info.st_mode) || info.st_uid != geteuid() || info.st_nlink != 1)
    why = "it is no plain file of root's with one name";
  else if (note.inode != 0 && info.st_ino != note.inode)
    why = "it is not the file that cowd made";
  else
    why = header_disagrees(store, head_of(fd));
  return why.empty() ? why
                     : text("The note beside ", store.path,
                            " says that it is a transient store "
                            "of this host, but ",
                            why, ". cowd leaves it alone; remove it yourself if nobody needs it.");
}

// --- making, changing, removing ---------------------------------------------

TransientStore Directory::create(TransientStore store) const {
  store.path = path_ + "/" + store.uuid + kStoreEnd;
  Note note{store, 0};
  write_note(note);
  const std::string name = store.uuid + kStoreEnd;
  try {
    const Fd fd(
        openat(fd_, name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    struct stat info {};
    if (fd.get() < 0 || ftruncate(fd.get(), static_cast<off_t>(store.bytes)) < 0 ||
        fsync(fd.get()) < 0 || fstat(fd.get(), &info) < 0)
      throw failed("Making the transient store", name);
    sync();
    note.inode = info.st_ino;
    write_note(note);
  } catch (const Error&) {
    try {
      remove(store);
    } catch (const Error&) {  // then list() finds it
    }
    throw;
  }
  return store;
}

void Directory::mark_saved(const TransientStore& store, bool saved) const {
  Note note = read_note(store.uuid);
  note.store.saved = saved;
  write_note(note);
}

void Directory::remove(const TransientStore& store) const {
  const Note note = read_note(store.uuid);
  const std::string name = store.uuid + kStoreEnd;
  {
    const Fd fd(openat(fd_, name.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (fd.get() < 0 && errno != ENOENT) throw failed("Opening the transient store", name);
    if (fd.get() >= 0) {
      if (opened_by_others(fd.get()) || !LoopDevice::find(store.path).empty())
        throw Error(EBUSY, text("The transient store ", store.path,
                                " is open, so it is not removed; detach what uses it."));
      const std::string why = why_not_ours(note, fd.get());
      if (!why.empty()) throw Error(EUCLEAN, why);
      struct stat ours {
      }, named{};
      if (fstat(fd.get(), &ours) < 0 ||
          fstatat(fd_, name.c_str(), &named, AT_SYMLINK_NOFOLLOW) < 0 ||
          ours.st_ino != named.st_ino || unlinkat(fd_, name.c_str(), 0) < 0)
        throw failed("Removing the transient store", name);
      sync();
    }
  }
  if (unlinkat(fd_, (store.uuid + kNoteEnd).c_str(), 0) < 0)
    throw failed("Removing the note", store.uuid + kNoteEnd);
  sync();
}

}  // namespace cowd::transient
