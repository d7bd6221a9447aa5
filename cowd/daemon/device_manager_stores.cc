// SPDX-License-Identifier: GPL-2.0-or-later
// Transient stores: made at attach, removed when their device is gone, kept when their
// domain was saved.
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/error.hh"
#include "cowd/daemon/blocking_call.hh"
#include "cowd/daemon/device_manager.hh"
#include "cowd/daemon/error_id.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/on.hh"
#include "cowd/daemon/text.hh"
#include "cowd/daemon/undo.hh"

namespace cowd {

namespace {

const FormatDescriptor* load_format(PluginLoader* plugins, const std::string& format) {
  return &plugins->load(format);
}

const char* state_of(const TransientStore& store, bool in_use, const std::string& host_id) {
  if (store.host_id != host_id) return "foreign";
  if (in_use) return "in-use";
  if (!store.problem.empty()) return "unreadable";
  return store.saved ? "saved" : "left";
}

}  // namespace

Task<TransientStore> DeviceManager::prepare_store(const AttachRequest& request,
                                                  const std::string& name, const DiskSpec& spec, Backing& base,
                                                  Undo& undo) {
  require_store_directory(spec.top.pool, config_.devices.store_directories);
  while (!stores_cleaned_) co_await changed_.wait();
  const FormatDescriptor* format = co_await blocking(load_format, environment_.plugins, spec.format);
  if (!format->store_size || !format->create || !spec.base)
    throw Error(EINVAL, text(spec.text(), ": a transient store needs a format that lies over a "
                                          "base, and the base: write dscow:",
                             spec.top.text(), ":BASE."));
  StoreBinding binding{request.domain.vm_uuid, request.domain.vdev};
  // What domain 0 attaches for a moment (pygrub) is nobody's.
  if (binding.vm_uuid == kDomainZero) binding = {};
  if (!binding.vm_uuid.empty()) {
    auto saved = co_await blocking(&TransientStores::find_saved, &transient_, spec.top.pool, binding);
    if (saved) {
      std::string uuid = saved->uuid;
      // Never a fresh one instead: what the guest remembers of its disk would be wrong.
      if (!store_uuids_.insert(uuid).second)
        throw Error(EBUSY, text("The store ", uuid, " of the saved domain is still being closed or "
                                "removed. Try again in a moment."));
      undo.add("the use of its saved store", [this, uuid]() -> Task<> {
        store_uuids_.erase(uuid);
        co_return;
      });
      std::string sentence =
          text("The device ", name, " goes on with the store ", uuid, " of its saved domain.");
      log(Level::info, sentence, {name, {}});
      environment_.events->add("store-taken", name, sentence);
      co_return *saved;
    }
  }
  base = co_await blocking(open_backing, environment_.io, *spec.base, BackingUse::base);
  uint64_t bytes = format->store_size(base.disk->size(), {});
  TransientStore store =
      co_await blocking(&TransientStores::create, &transient_, spec.top.pool, bytes, binding);
  store_uuids_.insert(store.uuid);
  undo.add("the making of its store", [this, name, store]() -> Task<> {
    co_await removals_.remove(name, store);
    store_uuids_.erase(store.uuid);
  });
  co_await format_store(store, base, *format);
  co_return store;
}

Task<> DeviceManager::format_store(const TransientStore& store, const Backing& base,
                                   const FormatDescriptor& format) {
  Component top;
  top.path = store.path;
  Backing backing = co_await blocking(open_backing, environment_.io, top, BackingUse::change);
  CreateRequest create;
  create.top = backing.disk;
  create.base = base.disk;
  create.options = {{"uuid", store.uuid}};
  co_await format.create(std::move(create));
}

Task<std::vector<TransientStore>> DeviceManager::scan_stores() {
  auto complaints = std::make_shared<std::vector<std::string>>();
  auto scan = [](TransientStores* stores, const std::vector<std::string>& directories,
                 const std::shared_ptr<std::vector<std::string>>& sentences) {
    return stores->scan(directories, sentences.get());
  };
  auto found = co_await blocking(scan, &transient_, config_.devices.store_directories, complaints);
  for (const std::string& sentence : *complaints) log(Level::warning, sentence);
  co_return found;
}

// What a host that crashed, or a cowd that died half way, left behind.
Task<> DeviceManager::clean_stores(std::set<std::string> in_use) {
  std::vector<TransientStore> found;
  try {
    found = co_await scan_stores();
  } catch (const std::exception& error) {
    log(Level::warning, text("Transient stores cannot be looked for. ", error.what()));
  }
  for (const TransientStore& store : found) {
    bool ours = store.host_id == environment_.host_id;
    if (!ours || store.saved || in_use.contains(store.uuid)) continue;
    if (!store.problem.empty()) {
      log(Level::warning, text("The transient store ", store.uuid, " is left alone. ", store.problem));
      continue;
    }
    log(Level::info, text("The transient store ", store.uuid, " (", store.path,
                          ") was left by a crash and is removed."));
    co_await removals_.remove(store.path, store);
  }
  stores_cleaned_ = true;
  changed_.notify();
}

Task<nlohmann::json> DeviceManager::stores() { return on(strand_, stores_here()); }

Task<nlohmann::json> DeviceManager::stores_here() {
  auto found = co_await scan_stores();
  nlohmann::json list = nlohmann::json::array();
  for (const TransientStore& store : found) {
    const std::string why = removals_.why(store.uuid);
    list.push_back(
        {{"uuid", store.uuid},
         {"where", store.where},
         {"path", store.path},
         {"state", state_of(store, store_uuids_.contains(store.uuid), environment_.host_id)},
         {"problem", why.empty() ? store.problem : why},
         {"vm_uuid", store.binding.vm_uuid},
         {"vdev", store.binding.vdev},
         {"size", store.bytes},
         {"created_at", store.created_at}});
  }
  co_return nlohmann::json{{"stores", std::move(list)}};
}

Task<> DeviceManager::delete_store(std::string uuid) {
  return on(strand_, delete_store_here(std::move(uuid)));
}

Task<> DeviceManager::delete_store_here(std::string uuid) {
  for (const TransientStore& store : co_await scan_stores()) {
    if (store.uuid != uuid) continue;
    if (store.host_id != environment_.host_id)
      throw Error(EPERM, text("The store ", uuid, " is another host's: delete it there."));
    // Taken while it is being removed, lest a restore pick it up now.
    if (!store_uuids_.insert(uuid).second)
      throw Error(EBUSY, text("The store ", uuid, " is in use. It goes with its domain."));
    std::exception_ptr error;
    try {
      co_await blocking(&TransientStores::remove, &transient_, store,
                        TransientStores::Saved::goes);
    } catch (...) {
      error = std::current_exception();
    }
    store_uuids_.erase(uuid);
    if (error) std::rethrow_exception(error);
    std::string sentence = text("The ", store.saved ? "saved" : "left", " store ", uuid, " (",
                                store.path, ") was deleted on request.");
    log(Level::info, sentence);
    environment_.events->add("store-deleted", "", sentence);
    co_return;
  }
  throw Error(ENOENT, text("There is no transient store ", uuid,
                           ". \"cowctl stores\" shows those that are there."));
}

// --- devices of domains -----------------------------------------------------

Task<dm::Info> DeviceManager::mapping(std::string name) {
  co_return co_await blocking(dm::info, name);
}

Task<> DeviceManager::leave(std::string name, Device::Leaving how) {
  return on(strand_, leave_here(std::move(name), how));
}

Task<> DeviceManager::leave_here(std::string name, Device::Leaving how) {
  auto found = devices_.find(name);
  if (found == devices_.end()) co_return;
  DevicePtr device = found->second;
  co_await on(device->strand(), device->leave(how));
}

Task<> DeviceManager::abandon(std::string name) {
  return on(strand_, abandon_here(std::move(name)));
}

Task<> DeviceManager::abandon_here(std::string name) {
  auto found = devices_.find(name);
  if (found == devices_.end()) co_return;
  DevicePtr device = found->second;
  co_await on(device->strand(), device->abandon());
}

Task<> DeviceManager::note(std::string name, std::function<void(DeviceEntry&)> change) {
  return on(strand_, note_here(std::move(name), std::move(change)));
}

Task<> DeviceManager::note_here(std::string name, std::function<void(DeviceEntry&)> change) {
  auto found = devices_.find(name);
  if (found == devices_.end()) co_return;
  DevicePtr device = found->second;
  co_await on(device->strand(), device->note(std::move(change)));
}

Task<> DeviceManager::mark_saved(std::string name, bool saved) {
  return on(strand_, mark_saved_here(std::move(name), saved));
}

Task<> DeviceManager::mark_saved_here(std::string name, bool saved) {
  auto found = devices_.find(name);
  if (found == devices_.end()) co_return;
  DevicePtr device = found->second;
  DeviceEntry entry = co_await on(device->strand(), device->entry());
  // Also if the note says so: the mark itself may have been taken off, and cowd killed, before it.
  if (!entry.store || (!saved && !entry.store->saved)) co_return;
  std::function<void(DeviceEntry&)> change = [saved](DeviceEntry& noted) {
    if (noted.store) noted.store->saved = saved;
  };
  co_await blocking(&TransientStores::mark_saved, &transient_, *entry.store, saved);
  co_await on(device->strand(), device->note(change));
}

Task<std::string> DeviceManager::hindered(StoreIdentity store, bool writes) {
  return on(strand_, hindered_here(std::move(store), writes));
}

Task<std::string> DeviceManager::hindered_here(StoreIdentity store, bool writes) {
  co_return stores_.hindered(store, writes);
}

Task<std::optional<DeviceEntry>> DeviceManager::entry(std::string name) {
  return on(strand_, entry_here(std::move(name)));
}

Task<std::optional<DeviceEntry>> DeviceManager::entry_here(std::string name) {
  auto found = devices_.find(name);
  if (found == devices_.end()) co_return std::nullopt;
  DevicePtr device = found->second;
  co_return co_await on(device->strand(), device->entry());
}

Task<std::vector<DeviceEntry>> DeviceManager::entries() {
  std::vector<DeviceEntry> list;
  for (const DevicePtr& device : co_await on(strand_, all()))
    list.push_back(co_await on(device->strand(), device->entry()));
  co_return list;
}

}  // namespace cowd
