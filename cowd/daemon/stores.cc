// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/stores.hh"

#include <sys/stat.h>

#include <cerrno>
#include <utility>
#include <vector>

#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/core/iscsi.hh"
#include "cowd/core/loop.hh"
#include "cowd/core/nbd.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

StoreIdentity identify_device(dev_t device) {
  // Somebody else may be logged in to the same target.
  for (std::string& remote : std::vector{iscsi_identity(device), NbdDevice::export_of(device)})
    if (!remote.empty()) return {false, 0, 0, std::move(remote)};
  if (const auto file = LoopDevice::file_of(device)) return {false, file->device, file->inode, {}};
  return {true, device, 0, {}};
}

StoreIdentity identify_store(const Component& component) {
  if (component.kind == Component::Kind::iscsi) return {false, 0, 0, iscsi_identity(component)};
  if (component.kind != Component::Kind::path) return {false, 0, 0, component.text()};
  const std::string& path = component.path;
  struct stat st;
  if (stat(path.c_str(), &st) < 0)
    throw Error(errno, text(path, " cannot be used: ", errno_text(errno),
                            ". Name a block device or a file that is there."));
  if (S_ISBLK(st.st_mode)) return identify_device(st.st_rdev);
  return {false, st.st_dev, st.st_ino, {}};
}

void Stores::claim(const std::string& device, const StoreIdentity& store, bool writable,
                   const std::string& path) {
  Use& use = uses_[store];
  // Who tries again to take up its image has claimed what that names before.
  if (!use.writer.empty() && !(writable && use.writer == device))
    throw Error(EBUSY, text(path, " is the store of ", use.writer,
                            ", which writes to it: nobody else may use it until that is "
                            "detached."));
  if (writable && !use.readers.empty())
    throw Error(EBUSY, text(path, " is the base of ", *use.readers.begin(),
                            ": it may not be written until that is detached."));
  if (writable)
    use.writer = device;
  else
    use.readers.insert(device);
}

std::string Stores::hindered(const StoreIdentity& store, bool writes) const {
  auto it = uses_.find(store);
  if (it == uses_.end()) return {};
  const Use& use = it->second;
  if (!use.writer.empty()) return use.writer;
  return writes && !use.readers.empty() ? *use.readers.begin() : std::string();
}

void Stores::release(const std::string& device) {
  for (auto it = uses_.begin(); it != uses_.end();) {
    Use& use = it->second;
    if (use.writer == device) use.writer.clear();
    use.readers.erase(device);
    it = use.writer.empty() && use.readers.empty() ? uses_.erase(it) : std::next(it);
  }
}

}  // namespace cowd
