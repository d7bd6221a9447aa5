// SPDX-License-Identifier: GPL-2.0-or-later
// What the disks of domains live in, for tests: a XenStore, a Xen, and what outlives cowd of
// its devices (the kernel's devices, the notes in the run directory, LVM's tags). Calls can be
// held up, so that a test says what happens first.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cowd/core/error.hh"
#include "cowd/core/spec.hh"
#include "cowd/daemon/domain_devices.hh"
#include "cowd/daemon/signal_event.hh"
#include "cowd/daemon/text.hh"
#include "cowd/daemon/xen_host.hh"

namespace cowd {

// --- Xen, of which cowd has a thread -----------------------------------------

class FakeXen {
 public:
  FakeXen() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  ~FakeXen() { close(fd_); }

  // The toolstack's side. What is written below a watched path is told.
  void write(const std::string& path, const std::string& value) {
    const std::lock_guard lock(mutex_);
    nodes_[path] = value;
    tell(path);
  }
  void remove(const std::string& path) {
    const std::lock_guard lock(mutex_);
    std::erase_if(nodes_, [&](const auto& node) {
      return node.first == path || node.first.starts_with(path + "/");
    });
    tell(path);
  }
  // Without an event, as when it happened before anybody watched.
  void forget_events() {
    const std::lock_guard lock(mutex_);
    events_.clear();
  }
  void domain(const XenDomain& domain) {
    const std::lock_guard lock(mutex_);
    domains_[domain.id] = domain;
  }
  void end(uint32_t id) {
    const std::lock_guard lock(mutex_);
    domains_.erase(id);
  }
  void release() {
    const std::lock_guard lock(mutex_);
    tell("@releaseDomain");
  }
  void tell_often(const std::vector<std::string>& paths) {
    const std::lock_guard lock(mutex_);
    for (const std::string& path : paths) tell(path);
  }

  void block(bool blocked) {
    const std::lock_guard lock(mutex_);
    blocked_ = blocked;
    changed_.notify_all();
  }
  void break_domains(bool broken) {
    const std::lock_guard lock(mutex_);
    broken_ = broken;
  }
  void break_watches(unsigned count) {
    const std::lock_guard lock(mutex_);
    broken_watches_ = count;
  }
  void break_reads(bool broken) {
    const std::lock_guard lock(mutex_);
    broken_reads_ = broken;
  }
  // Whether cowd's thread is held up in a call.
  bool in_call() {
    const std::lock_guard lock(mutex_);
    return waiting_;
  }
  // Until it has left for good.
  void wait_for_no_host() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !hosts_; });
  }
  size_t reads() {
    const std::lock_guard lock(mutex_);
    return reads_;
  }
  size_t batches() {
    const std::lock_guard lock(mutex_);
    return batches_;
  }
  // From here on there is always more to hear of these.
  void flood(std::vector<std::string> paths) {
    const std::lock_guard lock(mutex_);
    flood_ = std::move(paths);
    if (!flood_.empty()) ring();
  }

  class Host : public XenHost {
   public:
    explicit Host(FakeXen& xen) : xen_(xen) {
      const std::lock_guard lock(xen_.mutex_);
      ++xen_.hosts_;
    }
    ~Host() override {
      const std::lock_guard lock(xen_.mutex_);
      --xen_.hosts_;
      xen_.changed_.notify_all();
    }
    std::optional<std::string> read(const std::string& path) override {
      std::unique_lock lock = xen_.enter();
      ++xen_.reads_;
      if (xen_.broken_reads_) throw Error(EIO, "xenstored does not answer.");
      auto found = xen_.nodes_.find(path);
      if (found == xen_.nodes_.end()) return std::nullopt;
      return found->second;
    }
    std::vector<std::string> list(const std::string& path) override {
      std::unique_lock lock = xen_.enter();
      std::set<std::string> names;
      for (const auto& [node, value] : xen_.nodes_)
        if (node.starts_with(path + "/"))
          names.insert(
              node.substr(path.size() + 1, node.find('/', path.size() + 1) - path.size() - 1));
      return {names.begin(), names.end()};
    }
    void watch(const std::string& path) override {
      std::unique_lock lock = xen_.enter();
      if (xen_.broken_watches_ && path != "@releaseDomain") {
        --xen_.broken_watches_;
        throw Error(EIO, "xenstored does not answer.");
      }
      xen_.watched_.insert(path);
      xen_.tell(path);
    }
    int fd() const override { return xen_.fd_; }
    std::vector<std::string> changes() override {
      const std::lock_guard lock(xen_.mutex_);
      uint64_t count;
      if (::read(xen_.fd_, &count, sizeof count) < 0) count = 0;
      std::vector<std::string> all;
      all.swap(xen_.events_);
      all.insert(all.end(), xen_.flood_.begin(), xen_.flood_.end());
      if (!xen_.flood_.empty()) xen_.ring();
      ++xen_.batches_;
      return all;
    }
    std::vector<XenDomain> domains() override {
      std::unique_lock lock = xen_.enter();
      if (xen_.broken_) throw Error(EIO, "Xen does not answer.");
      std::vector<XenDomain> all;
      for (const auto& [id, domain] : xen_.domains_) all.push_back(domain);
      return all;
    }

   private:
    FakeXen& xen_;
  };

 private:
  std::unique_lock<std::mutex> enter() {
    std::unique_lock lock(mutex_);
    waiting_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !blocked_; });
    waiting_ = false;
    return lock;
  }
  void tell(const std::string& path) {
    bool watched = std::any_of(watched_.begin(), watched_.end(), [&](const std::string& root) {
      return path == root || path.starts_with(root + "/") || root.starts_with(path + "/");
    });
    if (!watched) return;
    events_.push_back(path);
    ring();
  }
  void ring() const {
    const uint64_t one = 1;
    if (::write(fd_, &one, sizeof one) < 0) throw Error(errno, "The event cannot be told.");
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  const int fd_;
  std::map<std::string, std::string> nodes_;
  std::map<uint32_t, XenDomain> domains_;
  std::set<std::string> watched_;
  std::vector<std::string> events_, flood_;
  bool blocked_ = false, waiting_ = false, broken_ = false, broken_reads_ = false;
  size_t reads_ = 0, batches_ = 0;
  unsigned hosts_ = 0, broken_watches_ = 0;
};

// --- what outlives cowd of its devices ----------------------------------------

struct FakeStores {
  struct Store {
    StoreBinding binding;
    bool saved = false;  // the tag
  };
  std::map<std::string, Store> stores;         // by UUID
  std::map<std::string, DeviceEntry> entries;  // notes; each has its dm device
  std::set<std::string> open;                  // devices that somebody has open
  std::set<std::string> leaving;               // that go at their last close
  unsigned made = 0, devices = 0;
};

// cowd's DeviceManager as far as disks of domains see it. All on one thread.
class FakeDevices : public DomainDevices {
 public:
  FakeDevices(boost::asio::any_io_executor executor, FakeStores& world)
      : world_(world), changed_(std::move(executor)) {}

  std::vector<std::string> said;
  std::set<std::string>
      held;  // before these steps it stays: attach, entry, note, mark, marked, leave, tell
  bool said_it(const std::string& line) const {
    return std::find(said.begin(), said.end(), line) != said.end();
  }
  void let_go() {
    held.clear();
    tell_all();
    changed_.notify();
  }
  // The last user of a device, blkback, lets go of it.
  void close(const std::string& name) {
    world_.open.erase(name);
    if (world_.leaving.contains(name)) finish(name);
  }

  Task<nlohmann::json> attach(AttachRequest request) override {
    const DiskSpec spec = parse_spec(request.spec);
    co_await step("attach", request.name);
    if (world_.entries.contains(request.name)) throw Error(EEXIST, "The name is taken.");
    for (const auto& [name, entry] : world_.entries)
      if (entry.spec == spec.text() && !(entry.read_only && request.read_only))
        throw Error(EBUSY, text(spec.text(), " is the store of ", name, "."));
    DeviceEntry entry;
    entry.name = request.name;
    entry.uuid = text("DMU-", ++world_.devices);
    entry.spec = spec.text();
    entry.read_only = request.read_only;
    entry.domain = request.domain;
    if (spec.top.kind == Component::Kind::transient) {
      entry.store = take_store({request.domain.vm_uuid, request.domain.vdev});
      entry.spec = entry.store->uuid;
    }
    world_.entries[request.name] = entry;
    co_return nlohmann::json{{"name", request.name}, {"uuid", entry.uuid}};
  }
  Task<dm::Info> mapping(std::string name) override {
    dm::Info info;
    info.name = name;
    info.path = "/dev/mapper/" + name;
    info.dev = "253:16";
    co_return info;
  }
  Task<> leave(std::string name, Device::Leaving how) override {
    const char* word = how == Device::Leaving::suspended ? "suspended"
                       : how == Device::Leaving::dying   ? "dying"
                                                         : "orderly";
    co_await step("leave", text(name, " ", word));
    if (!world_.entries.contains(name)) co_return;
    world_.leaving.insert(name);
    if (how == Device::Leaving::dying || !world_.open.contains(name)) close(name);
  }
  Task<> abandon(std::string name) override {
    co_await step("abandon", name);
    close(name);
  }
  Task<> note(std::string name, std::function<void(DeviceEntry&)> change) override {
    co_await step("note", name);
    if (broken_notes) {
      --broken_notes;
      throw Error(ENOSPC, "/run is full.");
    }
    if (auto found = world_.entries.find(name); found != world_.entries.end())
      change(found->second);
  }
  Task<> mark_saved(std::string name, bool saved) override {
    auto entry = world_.entries.find(name);
    if (entry == world_.entries.end() || !entry->second.store ||
        entry->second.store->saved == saved)
      co_return;
    const std::string uuid = entry->second.store->uuid;
    co_await step("mark", text(name, saved ? " saved" : " not saved"));
    if (broken_marks) {
      --broken_marks;
      throw Error(EIO, "LVM does not answer.");
    }
    world_.stores[uuid].saved = saved;
    co_await step("marked", name);
    if (world_.entries.contains(name)) world_.entries[name].store->saved = saved;
  }
  Task<std::vector<DeviceEntry>> entries() override {
    std::vector<DeviceEntry> list;
    for (const auto& [name, entry] : world_.entries) list.push_back(entry);
    co_return list;
  }
  Task<std::optional<DeviceEntry>> entry(std::string name) override {
    co_await step("entry", name);
    auto found = world_.entries.find(name);
    if (found == world_.entries.end()) co_return std::nullopt;
    co_return found->second;
  }
  Task<std::string> hindered(StoreIdentity, bool) override {
    ++hindered_asked;
    co_return std::string();
  }
  void on_gone(std::function<void(const DeviceEntry&)> tell) override { tell_ = std::move(tell); }

  size_t hindered_asked = 0;
  unsigned broken_marks = 0, broken_notes = 0;  // so many of them fail

 private:
  Task<> step(std::string what, std::string about) {
    said.push_back(text(what, " ", about));
    while (held.contains(what)) co_await changed_.wait();
  }
  TransientStore take_store(const StoreBinding& binding) {
    TransientStore store;
    store.binding = binding;
    for (const auto& [uuid, each] : world_.stores)
      if (each.saved && each.binding == binding && store.uuid.empty()) store.uuid = uuid;
    store.saved = !store.uuid.empty();
    if (store.uuid.empty()) store.uuid = text("store-", ++world_.made);
    world_.stores[store.uuid] = {binding, store.saved};
    return store;
  }
  // As DeviceManager: a store that is not noted as saved goes, unless its own mark says no.
  void finish(const std::string& name) {
    const DeviceEntry entry = world_.entries.at(name);
    world_.entries.erase(name);
    world_.leaving.erase(name);
    if (entry.store && !entry.store->saved && !world_.stores[entry.store->uuid].saved)
      world_.stores.erase(entry.store->uuid);
    untold_.push_back(entry);
    if (!held.contains("tell")) tell_all();
  }
  void tell_all() {
    for (const DeviceEntry& entry : std::exchange(untold_, {}))
      if (tell_) tell_(entry);
  }

  FakeStores& world_;
  SignalEvent changed_;
  std::function<void(const DeviceEntry&)> tell_;
  std::vector<DeviceEntry> untold_;
};

}  // namespace cowd
