// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/device_manager.hh"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cowd/core/backing_mark.hh"
#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/core/host.hh"
#include "cowd/core/json.hh"
#include "cowd/core/units.hh"
#include "cowd/daemon/blocking_call.hh"
#include "cowd/daemon/error_id.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/on.hh"
#include "cowd/daemon/text.hh"
#include "cowd/daemon/undo.hh"

namespace cowd {

namespace asio = boost::asio;

namespace {

// Ample for disks that answer; whoever wants another disk waits for so long at most.
constexpr std::chrono::milliseconds kFirstTries{3000};

// Logs a failure of the reattaching or cleaning of `name` and puts it on the ring.
void tell(EventRing& events, const std::string& name, const std::string& sentence) {
  std::string id = new_error_id();
  log(Level::error, sentence, {name, id});
  events.add("reattach-failed", name, sentence, id);
}

// A device of ours that nobody serves and nobody knows any more: the run directory was lost.
bool is_left(const dm::Info& info) {
  const auto has_uuid = [&](const dm::Info& each) { return each.uuid == info.uuid; };
  const std::vector<dm::Info> ours = dm::list();
  if (std::ranges::none_of(ours, has_uuid)) return false;
  const std::string state = dm::status(info.name)["state"];
  return state != "active" && state != "replaying";
}

}  // namespace

DeviceManager::DeviceManager(asio::io_context& io, const Config& config,
                             DeviceEnvironment environment)
    : io_(io),
      config_(config),
      environment_(std::move(environment)),
      strand_(asio::make_strand(io)),
      transient_(environment_.host_id, environment_.boot_id),
      removals_(strand_, [this](const TransientStore& store) { transient_.remove(store); },
                *environment_.events, {}),
      changed_(strand_) {
  environment_.claim = [this](std::string device, Component file, bool writable) {
    return on(strand_, claim_named(std::move(device), std::move(file), writable));
  };
}

DeviceManager::DevicePtr DeviceManager::make_device(DeviceEntry entry) {
  std::string name = entry.name;
  // By then the name may be another device's.
  const auto self = std::make_shared<std::weak_ptr<Device>>();
  const auto device = std::make_shared<Device>(
      asio::make_strand(io_), environment_, std::move(entry), [this, name, self] {
        asio::co_spawn(
            strand_,
            [this, name, self]() -> Task<> {
              auto found = devices_.find(name);
              if (found != devices_.end() && found->second == self->lock())
                co_await finish(found->second);
            },
            asio::detached);
      });
  *self = device;
  return device;
}

// The dm device is gone and its image is closed: what was made for it goes too.
Task<> DeviceManager::finish(DevicePtr device) {
  DeviceEntry entry = co_await on(device->strand(), device->entry());
  if (entry.store && !entry.store->saved) co_await removals_.remove(entry.name, *entry.store);
  if (entry.store) store_uuids_.erase(entry.store->uuid);
  if (device->unclosed()) unclosed_[entry.name] = entry;
  devices_.erase(entry.name);
  stores_.release(entry.name);
  co_await blocking(&BackingMark::clean);
  const std::lock_guard lock(tell_mutex_);
  if (tell_gone_) tell_gone_(entry);
}

void DeviceManager::on_gone(std::function<void(const DeviceEntry&)> tell) {
  const std::lock_guard lock(tell_mutex_);
  tell_gone_ = std::move(tell);
}

// --- attach -----------------------------------------------------------------

Task<nlohmann::json> DeviceManager::attach(AttachRequest request) {
  return on(strand_, attach_here(std::move(request)));
}

Task<nlohmann::json> DeviceManager::attach_here(AttachRequest request) {
  // Until then it is not known who has which store.
  while (!taken_up_) co_await changed_.wait();
  if (stopping_) throw Error(EAGAIN, "cowd is stopping. Try again when it has been started again.");
  DiskSpec spec = parse_spec(request.spec);
  if (!spec.named.empty())
    spec = co_await blocking(resolve_named_spec, spec, config_.paths.disks_dir);
  std::string name = co_await choose_name(request, spec);
  DevicePtr device;
  std::exception_ptr error;
  Undo undo;
  try {
    co_await close_left(name, spec);
    device = co_await make_and_attach(request, name, std::move(spec), undo);
  } catch (...) {
    error = std::current_exception();
  }
  if (error) {
    stores_.release(name);
    co_await undo.run(name);
    co_await blocking(&BackingMark::clean);
  }
  attaching_.erase(name);
  if (error) std::rethrow_exception(error);
  devices_[name] = device;
  std::string sentence = text("The device ", name, " serves ", device->spec_text(), ".");
  log(Level::info, sentence, {name, {}});
  environment_.events->add("attached", name, sentence);
  co_return co_await on(device->strand(), device->describe());
}

Task<DeviceManager::DevicePtr> DeviceManager::make_and_attach(AttachRequest& request,
                                                              const std::string& name,
                                                              DiskSpec spec, Undo& undo) {
  std::optional<TransientStore> store;
  Backing base;  // a connection made to learn its size is the one the device then uses
  if (spec.top.kind == Component::Kind::transient) {
    store = co_await prepare_store(request, name, spec, base, undo);
    Component top;
    top.path = store->path;
    spec.top = top;
    // What was saved is a persistent store, and stays one until its domain ends.
    request.durability = store->saved ? Durability::flush : Durability::transient;
  }
  co_await claim_stores(name, spec, request.read_only);
  DeviceEntry entry = make_entry(request, name, spec);
  entry.store = store;
  const auto left = co_await blocking(dm::find, name);
  if (left) {
    entry.uuid = left->uuid;
    entry.key = (co_await blocking(dm::table, name)).key;
  }
  DevicePtr device = make_device(std::move(entry));
  if (left)
    co_await on(device->strand(), device->adopt());
  else
    co_await on(device->strand(), device->attach(request.wanted));
  co_return device;
}

// A store that could not be closed when its device went, and a name that its note has.
Task<> DeviceManager::close_left(const std::string& name, const DiskSpec& spec) {
  const std::map<std::string, DeviceEntry> all = unclosed_;
  for (const auto& [left, entry] : all) {
    const DiskSpec other = parse_spec(entry.spec);
    const bool same = co_await blocking(same_backing, other.top, spec.top);
    if (!same && left != name) continue;
    if (unclosed_.erase(left)) co_await clean_one(entry);
    if (left == name && unclosed_.contains(left))
      throw Error(EEXIST, text("The store ", entry.spec, " of an earlier device ", name,
                               " could not be marked clean yet. \"cowctl events\" tells why."));
  }
}

Task<> DeviceManager::take_name(const std::string& name, const std::set<std::string>& taken) {
  check_device_name(name);
  Error exists(EEXIST,
               text("There is a device ", name, " already. Give the new one another name."));
  if (taken.contains(name)) throw exists;
  attaching_.insert(name);  // before we ask the kernel, so that nobody else does
  std::exception_ptr error;
  try {
    auto theirs = co_await blocking(dm::find, name);
    if (theirs && !co_await blocking(is_left, *theirs)) throw exists;
  } catch (...) {
    error = std::current_exception();
  }
  if (!error) co_return;
  attaching_.erase(name);
  std::rethrow_exception(error);
}

// A name that neither we nor anybody else has; it is taken from here on.
Task<std::string> DeviceManager::choose_name(const AttachRequest& request, const DiskSpec& spec) {
  std::set<std::string> taken = attaching_;
  for (const auto& [name, device] : devices_) taken.insert(name);
  if (!request.name.empty()) {
    co_await take_name(request.name, taken);
    co_return request.name;
  }
  for (;;) {
    std::string name = default_device_name(spec.top.text(), taken);
    // Others may have taken it while we asked the kernel.
    auto known = co_await blocking(dm::find, name);
    if (!known && !devices_.contains(name) && attaching_.insert(name).second) co_return name;
    taken.insert(name);
  }
}

// All that the paths resolve to is found out first, then claimed in one go: nobody sees
// half of it, and nothing has been written yet.
Task<> DeviceManager::claim_stores(const std::string& name, const DiskSpec& spec, bool read_only) {
  struct Use {
    Component component;
    bool writable;
    StoreIdentity identity;
  };
  std::vector<Use> uses{{spec.top, !read_only, {}}};
  if (spec.base) uses.push_back({*spec.base, false, {}});
  for (Use& use : uses) use.identity = co_await blocking(identify_store, use.component);
  for (const Use& use : uses) stores_.claim(name, use.identity, use.writable, use.component.text());
}

// What the kernel uses already, whatever we say: each as soon as it is known what it is, and
// the others also where one of them is not there.
Task<> DeviceManager::claim_used(const std::string& name, const DiskSpec& spec, bool read_only) {
  std::vector<std::pair<Component, bool>> uses{{spec.top, !read_only}};
  if (spec.base) uses.emplace_back(*spec.base, false);
  for (const auto& [component, writable] : uses) try {
      co_await claim_named(name, component, writable);
    } catch (const Error& error) {
      log(Level::warning, error.what(), {name, {}});
    }
}

// One more, which an image on them names. The end of the device releases it with the others.
Task<> DeviceManager::claim_named(std::string name, Component file, bool writable) {
  StoreIdentity identity = co_await blocking(identify_store, file);
  stores_.claim(name, identity, writable, file.text());
}

DeviceEntry DeviceManager::make_entry(const AttachRequest& request, const std::string& name,
                                      const DiskSpec& spec) const {
  DeviceEntry entry;
  entry.name = name;
  entry.key = random_uuid();
  entry.uuid = "DMU-" + entry.key;
  entry.spec = spec.text();
  entry.format = spec.format;
  entry.durability = request.durability.value_or(config_.devices.durability);
  entry.read_only = request.read_only;
  entry.queue_if_no_daemon =
      request.queue_if_no_daemon.value_or(config_.devices.queue_if_no_daemon);
  entry.no_daemon_seconds = request.no_daemon_seconds.value_or(config_.devices.no_daemon_seconds);
  entry.max_extents = request.max_extents.value_or(config_.devices.max_extents);
  entry.attached_at = format_rfc3339(std::chrono::system_clock::now());
  entry.domain = request.domain;
  return entry;
}

// --- detach and requests on one device --------------------------------------

Task<> DeviceManager::detach(std::string device) {
  return on(strand_, detach_here(std::move(device)));
}

Task<> DeviceManager::detach_here(std::string wanted) {
  DevicePtr device = co_await find(wanted);
  std::exception_ptr error;
  try {
    co_await on(device->strand(), device->detach());
  } catch (...) {
    error = std::current_exception();
  }
  if (device->gone()) {
    if (!device->unclosed()) environment_.run_dir->remove(device->name());
    co_await finish(device);
    std::string sentence = text("The device ", device->name(), " is detached.");
    log(Level::info, sentence, {device->name(), {}});
    environment_.events->add("detached", device->name(), sentence);
  }
  if (error) std::rethrow_exception(error);
}

Task<> DeviceManager::pause(std::string wanted) {
  DevicePtr device = co_await on(strand_, find(std::move(wanted)));
  co_await on(device->strand(), device->pause());
  environment_.events->add("paused", device->name(),
                           text("The device ", device->name(), " is paused."));
}

Task<> DeviceManager::resume(std::string wanted) {
  DevicePtr device = co_await on(strand_, find(std::move(wanted)));
  co_await on(device->strand(), device->resume());
  environment_.events->add("resumed", device->name(),
                           text("The device ", device->name(), " goes on."));
}

Task<DeviceManager::DevicePtr> DeviceManager::find(std::string wanted) {
  std::string name = wanted;
  if (name.starts_with("/dev/mapper/")) name = name.substr(12);
  if (auto found = devices_.find(name); found != devices_.end()) co_return found->second;
  std::string spec;
  try {
    spec = parse_spec(wanted).text();
  } catch (const Error&) {
    // Then it was meant as a name.
  }
  for (const auto& [each, device] : devices_)
    if (!spec.empty() && device->spec_text() == spec) co_return device;
  throw Error(ENODEV, text("cowd serves no device ", wanted,
                           ". \"cowctl list\" shows those that are there."));
}

Task<std::vector<DeviceManager::DevicePtr>> DeviceManager::all() {
  std::vector<DevicePtr> list;
  for (const auto& [name, device] : devices_) list.push_back(device);
  co_return list;
}

Task<nlohmann::json> DeviceManager::list() {
  nlohmann::json devices = nlohmann::json::array();
  for (const DevicePtr& device : co_await on(strand_, all()))
    devices.push_back(co_await on(device->strand(), device->describe()));
  co_return nlohmann::json{{"devices", std::move(devices)}};
}

Task<nlohmann::json> DeviceManager::info(std::string wanted) {
  DevicePtr device = co_await on(strand_, find(std::move(wanted)));
  co_return co_await on(device->strand(), device->info());
}

Task<nlohmann::json> DeviceManager::map(std::string wanted, std::optional<uint64_t> offset,
                                        std::optional<uint64_t> length) {
  DevicePtr device = co_await on(strand_, find(std::move(wanted)));
  auto entries = co_await on(device->strand(), device->map(offset, length));
  co_return nlohmann::json{{"map", map_to_json(entries)}};
}

Task<nlohmann::json> DeviceManager::stats(std::optional<std::string> wanted) {
  std::vector<DevicePtr> chosen;
  if (wanted)
    chosen.push_back(co_await on(strand_, find(*wanted)));
  else
    chosen = co_await on(strand_, all());
  nlohmann::json devices = nlohmann::json::array();
  for (const DevicePtr& device : chosen)
    devices.push_back(co_await on(device->strand(), device->stats()));
  co_return nlohmann::json{{"devices", std::move(devices)}};
}

Task<std::vector<SpaceUser>> DeviceManager::space_users() {
  std::vector<SpaceUser> users;
  for (const DevicePtr& device : co_await on(strand_, all())) {
    SpaceUser user = co_await on(device->strand(), device->space_user());
    if (!user.spaces.empty()) users.push_back(std::move(user));
  }
  co_return users;
}

Task<> DeviceManager::space_added(std::vector<std::string> names) {
  const std::set<std::string> wanted(names.begin(), names.end());
  for (const DevicePtr& device : co_await on(strand_, all()))
    if (wanted.contains(device->name())) co_await on(device->strand(), device->space_added());
}

// --- start and end ----------------------------------------------------------

Task<> DeviceManager::reattach_all() { return on(strand_, reattach_here()); }

Task<> DeviceManager::reattach_here() {
  auto listing = co_await blocking(&RunDir::list, environment_.run_dir);
  for (const std::string& complaint : listing.complaints) log(Level::warning, complaint);
  std::vector<dm::Info> kernel;
  try {
    kernel = co_await blocking(dm::list);
  } catch (const Error& error) {
    log(Level::warning, text("The kernel's devices cannot be listed. ", error.what()));
    if (!listing.entries.empty() && error.code() != ENODEV)
      throw;  // whether they are there decides what is done with their images
  }
  std::set<std::string> uuids, noted;
  for (const dm::Info& info : kernel) uuids.insert(info.uuid);
  // All are known before the first is tried: nobody takes a name, or asks in vain.
  std::vector<Task<>> tasks;
  for (const DeviceEntry& entry : listing.entries) {
    noted.insert(entry.uuid);
    if (!uuids.contains(entry.uuid)) {
      attaching_.insert(entry.name);
      tasks.push_back(clean_at_start(entry));
      continue;
    }
    DevicePtr device = devices_[entry.name] = make_device(entry);
    tasks.push_back(reattach_one(device, entry));
  }
  for (const dm::Info& info : kernel)
    if (!noted.contains(info.uuid))
      log(Level::warning,
          text("The device ", info.name, " has the target \"userspace\", but ",
               environment_.run_dir->path(),
               " has no note of it. It is left alone, and its users wait. \"cowctl attach --name ",
               info.name, "\" with what it was attached with serves it again."),
          {info.name, {}});
  std::set<std::string> in_use;
  for (const DeviceEntry& entry : listing.entries)
    if (entry.store) in_use.insert(entry.store->uuid);
  store_uuids_ = in_use;
  if (const size_t left = co_await all_of(std::move(tasks), kFirstTries))
    log(Level::warning,
        text(left, left == 1 ? " device" : " devices",
             " of an earlier cowd cannot be served yet, as what they lie on does not answer. cowd "
             "serves the others meanwhile."));
  taken_up_ = true;
  changed_.notify();
  // LVM may take its time; whoever wants a transient store waits for this, nobody else.
  asio::co_spawn(
      strand_, [this, in_use]() -> Task<> { co_await clean_stores(in_use); }, asio::detached);
}

Task<> DeviceManager::reattach_one(DevicePtr device, DeviceEntry entry) {
  std::string name = entry.name;
  try {
    co_await claim_used(name, parse_spec(entry.spec), entry.read_only);
    co_await on(device->strand(), device->reattach());
  } catch (const std::exception& error) {
    tell(*environment_.events, name,
         text("The device ", name, " of an earlier cowd could not be taken up. ", error.what()));
  }
}

Task<> DeviceManager::clean_at_start(DeviceEntry entry) {
  co_await clean_one(entry);
  attaching_.erase(entry.name);
}

Task<> DeviceManager::clean_one(DeviceEntry entry) {
  std::string name = entry.name;
  // One that goes needs no end.
  const bool goes = entry.store && !entry.store->saved;
  bool closed = true;
  try {
    if (!goes) {
      co_await claim_stores(name, parse_spec(entry.spec), entry.read_only);
      DevicePtr device = make_device(entry);
      co_await on(device->strand(), device->close_abandoned());
    }
    environment_.events->add(
        "detached", name, text("The device ", name, " had gone before; its store is closed now."));
  } catch (const std::exception& error) {
    closed = false;
    tell(*environment_.events, name,
         text("The device ", name, " has gone, and its store ", entry.spec,
              " could not be marked clean. ", error.what(),
              " cowd does that before it is attached again."));
  }
  stores_.release(name);
  if (goes) co_await removals_.remove(name, *entry.store);
  if (entry.store) store_uuids_.erase(entry.store->uuid);
  if (closed)
    environment_.run_dir->remove(name);
  else
    unclosed_[name] = entry;
}

Task<> DeviceManager::stop_all() {
  auto devices = co_await on(strand_, all());
  co_await on(strand_, [](DeviceManager* self) -> Task<> {
    self->stopping_ = true;
    co_return;
  }(this));
  std::vector<Task<>> tasks;
  for (const DevicePtr& device : devices) tasks.push_back(on(device->strand(), device->stop()));
  co_await all_of(std::move(tasks));
}

}  // namespace cowd
