// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/transient.hh"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>

#include "build/config.h"
#include "cowd/core/bounce.hh"
#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/core/fd.hh"
#include "cowd/core/host.hh"
#include "cowd/core/units.hh"
#include "cowd/daemon/lvm.hh"
#include "cowd/daemon/text.hh"
#include "cowd/daemon/transient_files.hh"
#include "formats/common/bytes.hh"
#include "formats/dscow/header.hh"

namespace cowd {

namespace fs = std::filesystem;

namespace {

constexpr const char* kTag = "cowd.transient";
constexpr const char* kSavedTag = "cowd.saved";
constexpr const char* kNewTag = "cowd.new";
constexpr size_t kHead = 2 * dscow::kBlock;
constexpr size_t kZeroed = 1 << 20;
static_assert(kZeroed % kBounceLarge == 0);

// What LVM takes in a tag; what a binding may hold, for files too.
void check_binding(const StoreBinding& binding) {
  const auto fine = [](const std::string& text) {
    return text.size() <= 100 && std::all_of(text.begin(), text.end(), [](unsigned char c) {
             return std::isalnum(c) || c == '-' || c == '_' || c == '.' || c == '/' || c == ':';
           });
  };
  if (!fine(binding.vm_uuid) || !fine(binding.vdev))
    throw Error(EINVAL, text("A store cannot be bound to the domain \"", binding.vm_uuid,
                             "\" and its disk \"", binding.vdev,
                             "\": letters, digits and -_./: are what both may hold."));
}

bool is_directory(const std::string& where) { return where.starts_with('/'); }

bool has_tag(const lvm::Volume& volume, const std::string& tag) {
  return std::find(volume.tags.begin(), volume.tags.end(), tag) != volume.tags.end();
}

std::string tag_value(const lvm::Volume& volume, const std::string& name) {
  const std::string begin = "cowd." + name + "=";
  for (const std::string& tag : volume.tags)
    if (tag.starts_with(begin)) return tag.substr(begin.size());
  return {};
}

TransientStore store_of(const lvm::Volume& volume) {
  TransientStore store;
  store.uuid = tag_value(volume, "store");
  store.where = volume.group;
  store.path = volume.path;
  store.lv_uuid = volume.uuid;
  store.host_id = tag_value(volume, "host");
  store.boot_id = tag_value(volume, "boot");
  store.binding = {tag_value(volume, "vm"), tag_value(volume, "vdev")};
  store.saved = has_tag(volume, kSavedTag);
  store.bytes = volume.bytes;
  store.created_at = format_rfc3339(std::chrono::system_clock::from_time_t(volume.created));
  return store;
}

// Only while it is still what we saw: one of ours.
std::string only_ours(const TransientStore& store, const std::string& host_id) {
  return text("lv_uuid=", store.lv_uuid, " && lv_tags=\"", kTag,
              "\" && lv_tags=\"cowd.host=", host_id, "\" && lv_tags=\"cowd.store=", store.uuid,
              "\"");
}

// Whoever removes what became worthless may have seen less than who marked it.
void refuse_saved(const TransientStore& store) {
  if (store.saved)
    throw Error(EPERM, text("The transient store ", store.path,
                            " is marked as that of a saved domain, so it is not removed. If that "
                            "is not to come back, say cowctl delete ",
                            store.uuid, "."));
}

// GROUP/NAME, as LVM's commands want it.
std::string name_of(const TransientStore& store) { return store.path.substr(5); }

void activate(const TransientStore& store) {
  lvm::run(text("Activating the transient store ", store.path),
           {"lvchange", "-ay", name_of(store)});
}

// Past the page cache: what dm writes does not go through this device's.
Buffer read_head(const std::string& path, bool claim) {
  const Fd fd(open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC | (claim ? O_EXCL : 0)));
  if (fd.get() < 0 && errno == EBUSY)
    throw Error(EBUSY, text("The transient store ", path, " is in use, so it is not removed."));
  const auto head = take_bounce(kHead);
  if (fd.get() < 0 || pread(fd.get(), head.get(), kHead, 0) != static_cast<ssize_t>(kHead))
    throw Error(errno ? errno : EIO, text("The head of the transient store ", path,
                                          " cannot be read: ", errno_text(errno ? errno : EIO),
                                          ". It is left as it is."));
  return Buffer(head.get(), head.get() + kHead);
}

void zero_head(const std::string& path) {
  const Fd fd(open(path.c_str(), O_WRONLY | O_DIRECT | O_EXCL | O_CLOEXEC));
  const auto zeroes = take_bounce(kBounceLarge);
  std::fill_n(zeroes.get(), kBounceLarge, std::byte{0});
  bool done = fd.get() >= 0;
  for (size_t at = 0; done && at < kZeroed; at += kBounceLarge)
    done = pwrite(fd.get(), zeroes.get(), kBounceLarge, static_cast<off_t>(at)) ==
           static_cast<ssize_t>(kBounceLarge);
  if (!done || fdatasync(fd.get()) < 0)
    throw system_error(errno, text("Clearing the new store ", path, " failed"));
}

}  // namespace

std::string header_disagrees(const TransientStore& store, std::span<const std::byte> head) {
  if (std::all_of(head.begin(), head.end(), [](std::byte b) { return b == std::byte(0); }))
    return {};
  if (head.size() < kHead) return "it is too short for a store";
  const dscow::Decoded copies[] = {dscow::decode(head.first(dscow::kBlock)),
                                   dscow::decode(head.subspan(dscow::kBlock, dscow::kBlock))};
  const dscow::Decoded* best = nullptr;
  for (const dscow::Decoded& copy : copies)
    if (copy.problem.empty() && (!best || copy.header.sequence > best->header.sequence))
      best = &copy;
  if (!best)
    return copies[0].magic || copies[1].magic ? "its dscow header cannot be read"
                                              : "it holds something that is no dscow store";
  const dscow::Header& header = best->header;
  if (header.store != Uuid{} && to_string(header.store) != store.uuid)
    return "its header says it is the store " + to_string(header.store);
  if (!header.owner.host.empty() && header.owner.host != store.host_id)
    return "its header says that the host " + header.owner.host + " owns it";
  return {};
}

void require_store_directory(const std::string& where, const std::vector<std::string>& known) {
  const auto plain = [](const std::string& path) {
    return (fs::path(path) / "").lexically_normal();
  };
  if (!is_directory(where) || std::any_of(known.begin(), known.end(), [&](const std::string& each) {
        return plain(each) == plain(where);
      }))
    return;
  std::string list;
  for (const std::string& each : known) list += (list.empty() ? "" : ", ") + each;
  throw Error(EINVAL,
              text("transient@", where,
                   ": a store there would be lost sight of when the host "
                   "crashes, as ",
                   where, " is not among devices.store_directories of cowd.toml (",
                   list.empty() ? "none" : list, "). Add it, restart cowd, and try again."));
}

TransientStores::TransientStores(std::string host_id, std::string boot_id)
    : host_id_(std::move(host_id)), boot_id_(std::move(boot_id)) {}

// --- what there is ----------------------------------------------------------

std::vector<TransientStore> TransientStores::volumes(const std::string& selection,
                                                     std::string* complaints) {
  std::vector<TransientStore> list;
  for (const lvm::Volume& volume : lvm::volumes(selection, complaints)) {
    if (!has_tag(volume, kTag)) continue;
    list.push_back(store_of(volume));
    if (list.back().host_id != host_id_ || has_tag(volume, kNewTag)) continue;
    list.back().problem = look_at(list.back(), volume.active);
  }
  return list;
}

// What stands against removing one of ours, in a sentence.
std::string TransientStores::look_at(const TransientStore& store, bool active) {
  try {
    if (!active) activate(store);
    const std::string why = header_disagrees(store, read_head(store.path, false));
    return why.empty()
               ? why
               : text("The tags of ", store.path, " say that it is the transient store ",
                      store.uuid, " of this host, but ", why,
                      ". cowd leaves it alone; remove it with lvremove if nobody needs it.");
  } catch (const Error& error) {
    return error.what();
  }
}

std::vector<TransientStore> TransientStores::scan(const std::vector<std::string>& directories,
                                                  std::vector<std::string>* complaints) {
  std::vector<TransientStore> list;
  const auto complain = [&](const std::string& sentence) {
    if (complaints && !sentence.empty()) complaints->push_back(sentence);
  };
  try {
    std::string said;
    list = volumes(text("lv_tags=\"", kTag, "\""), &said);
    complain(said);
  } catch (const Error& error) {
    complain(error.what());
  }
  for (const std::string& directory : directories) {
    try {
      const std::lock_guard lock(files_mutex_);
      for (TransientStore& store : transient::Directory(directory, host_id_).list())
        list.push_back(std::move(store));
    } catch (const Error& error) {
      // The one that nobody has named need not be there.
      if (error.code() != ENOENT || directory != COWD_STATE_DIR) complain(error.what());
    }
  }
  return list;
}

std::optional<TransientStore> TransientStores::find_saved(const std::string& where,
                                                          const StoreBinding& binding) {
  std::vector<TransientStore> all;
  if (is_directory(where)) {
    const std::lock_guard lock(files_mutex_);
    all = transient::Directory(where, host_id_).list();
  } else {
    all = volumes(text("lv_tags=\"", kSavedTag, "\" && vg_name=", where), nullptr);
  }
  for (const TransientStore& store : all)
    if (store.saved && store.host_id == host_id_ && store.binding == binding) return store;
  return std::nullopt;
}

// --- making one -------------------------------------------------------------

TransientStore TransientStores::create(const std::string& where, uint64_t bytes,
                                       const StoreBinding& binding) {
  check_binding(binding);
  TransientStore store;
  store.uuid = random_uuid();
  store.where = where;
  store.host_id = host_id_;
  store.boot_id = boot_id_;
  store.binding = binding;
  store.bytes = round_up(std::max<uint64_t>(bytes, kZeroed), dscow::kBlock);
  store.created_at = format_rfc3339(std::chrono::system_clock::now());
  if (!is_directory(where)) return create_volume(store);
  const std::lock_guard lock(files_mutex_);
  return transient::Directory(where, host_id_).create(std::move(store));
}

TransientStore TransientStores::create_volume(const TransientStore& wanted) {
  const std::string name = "cowd-" + wanted.uuid;
  const std::string purpose = text("Making a transient store of ", format_size(wanted.bytes),
                                   " in the volume group ", wanted.where);
  std::vector<std::string> argv = {
      "lvcreate", "--yes", "-Zn", "-Wn", "--setautoactivation",
      "n",        "-n",    name,  "-L",  std::to_string(wanted.bytes) + "b"};
  const auto tag = [&](const std::string& each) { argv.insert(argv.end(), {"--addtag", each}); };
  tag(kTag);
  tag(kNewTag);
  tag("cowd.store=" + wanted.uuid);
  tag("cowd.host=" + wanted.host_id);
  tag("cowd.boot=" + wanted.boot_id);
  if (!wanted.binding.vm_uuid.empty()) tag("cowd.vm=" + wanted.binding.vm_uuid);
  if (!wanted.binding.vdev.empty()) tag("cowd.vdev=" + wanted.binding.vdev);
  argv.push_back(wanted.where);
  try {
    lvm::run(purpose, argv);
    zero_head(text("/dev/", wanted.where, "/", name));
    lvm::run(purpose, {"lvchange", "--deltag", kNewTag, text(wanted.where, "/", name)});
    for (const lvm::Volume& volume : lvm::volumes(text("lv_tags=\"cowd.store=", wanted.uuid, "\"")))
      if (has_tag(volume, kTag)) return store_of(volume);
    throw Error(EIO, text(purpose, " failed: LVM does not list the volume it has just made."));
  } catch (...) {
    drop_new_volume(wanted.uuid);
    throw;
  }
}

// Best effort: what stays behind is found by scan().
void TransientStores::drop_new_volume(const std::string& uuid) noexcept {
  try {
    for (const lvm::Volume& volume : lvm::volumes(text("lv_tags=\"cowd.store=", uuid, "\"")))
      if (has_tag(volume, kTag)) remove_volume(volume, Saved::stays);
  } catch (const std::exception&) {
  }
}

// --- changing and removing --------------------------------------------------

// Throws unless what is there now is what was meant, and ours.
void TransientStores::require_ours(const TransientStore& wanted,
                                   const std::optional<TransientStore>& now) const {
  if (!now || now->uuid != wanted.uuid)
    throw Error(ENOENT, text("There is no transient store ", wanted.uuid, " in ", wanted.where,
                             " (any more)."));
  if (now->host_id != host_id_)
    throw Error(EPERM,
                text("The transient store ", now->path, " belongs to ",
                     now->host_id.empty() ? "nobody that is named" : "the host " + now->host_id,
                     ", not to this one: remove it there."));
}

void TransientStores::mark_saved(const TransientStore& wanted, bool saved) {
  if (wanted.lv_uuid.empty()) {
    const std::lock_guard lock(files_mutex_);
    const transient::Directory directory(wanted.where, host_id_);
    const auto now = directory.find(wanted.uuid);
    require_ours(wanted, now);
    if (now->saved != saved) directory.mark_saved(*now, saved);
    return;
  }
  const TransientStore store = store_of(our_volume(wanted));
  if (store.saved == saved) return;
  const std::string said = lvm::run(
      text("Noting on ", store.path, " that it is ", saved ? "saved" : "not saved any more"),
      {"lvchange", saved ? "--addtag" : "--deltag", kSavedTag, "--select",
       only_ours(store, host_id_), name_of(store)});
  // A selection that nothing fits is no failure to LVM.
  if (said.find(" changed") == std::string::npos)
    throw Error(ESTALE, text("The volume ", store.path,
                             " changed while it was marked as saved: try again."));
}

void TransientStores::remove(const TransientStore& wanted, Saved saved) {
  if (!wanted.lv_uuid.empty()) return remove_volume(our_volume(wanted), saved);
  const std::lock_guard lock(files_mutex_);
  const transient::Directory directory(wanted.where, host_id_);
  const auto now = directory.find(wanted.uuid);
  require_ours(wanted, now);
  if (saved == Saved::stays) refuse_saved(*now);
  directory.remove(*now);
}

lvm::Volume TransientStores::our_volume(const TransientStore& wanted) const {
  std::optional<lvm::Volume> found;
  for (lvm::Volume& volume : lvm::volumes("lv_uuid=" + wanted.lv_uuid))
    if (has_tag(volume, kTag)) found = std::move(volume);
  require_ours(wanted, found ? std::optional(store_of(*found)) : std::nullopt);
  return *found;
}

void TransientStores::remove_volume(const lvm::Volume& volume, Saved saved) const {
  const TransientStore store = store_of(volume);
  if (saved == Saved::stays) refuse_saved(store);
  if (volume.open)
    throw Error(EBUSY, text("The transient store ", store.path,
                            " is open, so it is not removed; detach what uses it."));
  if (!has_tag(volume, kNewTag)) {
    if (!volume.active) activate(store);
    const std::string why = header_disagrees(store, read_head(store.path, true));
    if (!why.empty())
      throw Error(EUCLEAN, text("The transient store ", store.path, " is not removed: ", why,
                                ", which is not what its tags say. Look at it, and remove it with "
                                "lvremove if nobody needs it."));
  }
  std::string which = only_ours(store, host_id_);
  if (saved == Saved::stays) which += text(" && lv_tags!=\"", kSavedTag, "\"");
  const std::string said = lvm::run(text("Removing the transient store ", store.path),
                                    {"lvremove", "--yes", "--select", which, name_of(store)});
  if (said.find("successfully removed") == std::string::npos)
    throw Error(ESTALE, text("The transient store ", store.path,
                             " changed while it was about to be removed; it is still there."));
}

}  // namespace cowd
