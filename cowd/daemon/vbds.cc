// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/vbds.hh"

#include <sys/sysmacros.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cowd/core/disk_options.hh"
#include "cowd/core/error.hh"
#include "cowd/daemon/blocking_call.hh"
#include "cowd/daemon/error_id.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/on.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

constexpr const char* kRoot = "backend/vbd";
constexpr const char* kRelease = "@releaseDomain";
// There is no event for a domain's first step.
constexpr auto kRunPoll = 1s;
constexpr auto kPreserveAgain = 5s;

bool is_number(std::string_view word) {
  return !word.empty() && word.size() <= 10 &&
         word.find_first_not_of("0123456789") == std::string_view::npos;
}

// "backend/vbd/3/51712", or a path below it, cut there. Empty: something else.
std::string node_path(std::string_view path) {
  constexpr std::string_view root = "backend/vbd/";
  if (!path.starts_with(root)) return {};
  const size_t domid_end = path.find('/', root.size());
  if (domid_end == std::string_view::npos) return {};
  const size_t end = std::min(path.find('/', domid_end + 1), path.size());
  if (!is_number(path.substr(root.size(), domid_end - root.size())) ||
      !is_number(path.substr(domid_end + 1, end - domid_end - 1)))
    return {};
  return std::string(path.substr(0, end));
}

unsigned domid_of(const std::string& path) {
  unsigned id = 0;
  const char* at = path.data() + std::string_view("backend/vbd/").size();
  std::from_chars(at, path.data() + path.size(), id);
  return id;
}

// What dm and a file name take, of what an operator called a domain.
std::string device_name(const std::string& domain, const std::string& vdev) {
  std::string name;
  for (char c : domain + "-" + vdev)
    name +=
        std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.' || c == '_' ? c : '_';
  return "vm-" + name.substr(0, 80);
}

const XenDomain* domain_in(const std::vector<XenDomain>& domains, unsigned id,
                           const std::string& vm_uuid) {
  for (const XenDomain& domain : domains)
    if (domain.id == id && domain.uuid == vm_uuid) return &domain;
  return nullptr;
}

// A VM is one domain after the other; domain 0's own disks have none.
bool is_alive(const std::vector<XenDomain>& domains, const std::string& vm_uuid) {
  return vm_uuid == kDomainZero ||
         std::any_of(domains.begin(), domains.end(), [&](const XenDomain& domain) {
           return domain.uuid == vm_uuid && !domain.dying;
         });
}

// "fd:3", as Xen's scripts write it.
std::string xen_dev(const std::string& dev) {
  unsigned major = 0, minor = 0;
  char hex[32] = "";
  if (std::sscanf(dev.c_str(), "%u:%u", &major, &minor) == 2)
    std::snprintf(hex, sizeof hex, "%x:%x", major, minor);
  return hex;
}

// And back.
std::optional<dev_t> dev_of(const std::string& xen) {
  unsigned major_number = 0, minor_number = 0;
  if (std::sscanf(xen.c_str(), "%x:%x", &major_number, &minor_number) != 2) return std::nullopt;
  return makedev(major_number, minor_number);
}

std::vector<XenDomain> domains_of(XenHost& host) { return host.domains(); }

}  // namespace

// As XenStore has it.
struct Vbds::Node {
  std::string path;
  std::string params;
  std::string vdev;
  std::string domain;
  std::string vm_uuid;
  bool read_only = false;
};

struct Vbds::Disk {
  enum class State { attaching, ready, leaving };
  std::string device;  // empty while it is attaching
  DomainNote note;
  bool read_only = false;
  bool transient = false;
  bool saved = false;  // its store is that of a saved domain, which has not run since
  State state = State::attaching;
  bool orderly = false;  // it leaves, nobody keeps it, and its users still finish
};

Vbds::Vbds(asio::io_context& io, DeviceManager& devices, EventRing& events, const Config& config,
           std::unique_ptr<XenHost> host)
    : devices_(devices),
      events_(events),
      config_(config),
      strand_(asio::make_strand(io)),
      changed_(strand_),
      xen_(std::move(host), [this](std::vector<std::string> paths) {
        asio::post(strand_, [this, paths = std::move(paths)] { changed(paths); });
      }) {
  devices_.on_gone([this](const DeviceEntry& entry) {
    if (entry.domain.vm_uuid.empty()) return;
    asio::post(strand_, [this, device = entry.name] { gone(device); });
  });
}

Vbds::~Vbds() { devices_.on_gone({}); }

void Vbds::spawn(Task<> task, const std::string& what) {
  asio::co_spawn(strand_, std::move(task), [this, what](std::exception_ptr error) {
    if (!error) return;
    std::string why;
    try {
      std::rethrow_exception(error);
    } catch (const std::exception& failure) {
      why = failure.what();
    } catch (...) {
      return;  // cowd ends
    }
    std::string id = new_error_id();
    std::string sentence = text(what, " went wrong. ", why);
    log(Level::error, sentence, {{}, id});
    events_.add("xen-error", "", sentence, id);
  });
}

Vbds::DiskPtr Vbds::find(const std::string& path) const {
  for (const auto& [device, disk] : disks_)
    if (std::find(disk->note.vbds.begin(), disk->note.vbds.end(), path) != disk->note.vbds.end())
      return disk;
  return nullptr;
}

// One device serves both: the same disk of the same VM, or of domain 0 beside it, which
// gets a transient store of its own, however.
Vbds::DiskPtr Vbds::find_same(const Node& node, const std::string& asked) const {
  for (const auto& [device, disk] : disks_) {
    const DomainNote& note = disk->note;
    bool same_vm = note.vm_uuid == node.vm_uuid;
    bool beside = !disk->transient && (note.vm_uuid == kDomainZero || node.vm_uuid == kDomainZero);
    bool same_place = !disk->transient || note.vdev == node.vdev;
    if (note.asked == asked && disk->read_only == node.read_only && same_place &&
        (same_vm || beside))
      return disk;
  }
  return nullptr;
}

// --- add --------------------------------------------------------------------

Task<nlohmann::json> Vbds::add(std::string path, std::function<Task<>()> still_wanted) {
  return on(strand_, add_here(std::move(path), std::move(still_wanted)));
}

Task<nlohmann::json> Vbds::add_here(std::string path, std::function<Task<>()> still_wanted) {
  if (node_path(path) != path)
    throw Error(EINVAL, text("\"", path, "\" is no path of a disk: backend/vbd/DOMID/DEVID."));
  while (!started_) co_await changed_.wait();
  std::string vdev = path.substr(path.rfind('/') + 1);
  std::optional<Error> failure;
  try {
    auto read = [path](XenHost& host) {
      auto value = [&](const std::string& key) { return host.read(key).value_or(""); };
      const std::string domain = text("/local/domain/", domid_of(path));
      Node node;
      node.path = path;
      node.params = value(path + "/params");
      node.vdev = value(path + "/dev");
      node.read_only = value(path + "/mode") == "r";
      node.domain = value(domain + "/name");
      node.vm_uuid = value(domain + "/vm");
      if (node.vm_uuid.starts_with("/vm/")) node.vm_uuid.erase(0, 4);
      // pygrub reads in domain 0, of which XenStore has no VM.
      if (domid_of(path) == 0) node.vm_uuid = kDomainZero;
      return node;
    };
    Node node = co_await xen_.call(read);
    if (!node.vdev.empty()) vdev = node.vdev;
    if (node.params.empty())
      throw Error(ENOENT, text("XenStore has no disk ", path,
                               " (any more), or no \"params\" in it: it was given up."));
    if (node.vm_uuid.empty())
      throw Error(ENOENT, text("XenStore has no VM of domain ", domid_of(path),
                               " (any more): it was given up."));
    DiskPtr disk = co_await join_or_make(node);
    // The script may have given up, or the node may have gone, while we worked.
    std::exception_ptr unwanted;
    try {
      co_await still_wanted();
    } catch (...) {
      unwanted = std::current_exception();
    }
    auto still_there = [path](XenHost& host) { return host.read(path + "/params").has_value(); };
    bool there = false;
    if (!unwanted) there = co_await xen_.call(still_there);
    if (!there) {
      co_await depart(path);
      throw Error(ECANCELED, text("The disk ", path, " was given up while it was attached."));
    }
    co_return co_await answer(*disk);
  } catch (const Error& error) {
    failure = error;
  }
  throw GuestError(*failure, text("The disk ", vdev));
}

// The disk of this node, ready.
Task<Vbds::DiskPtr> Vbds::join_or_make(const Node& node) {
  DiskSpec spec = parse_spec(node.params);
  const std::string asked = spec.text();
  bool keep_on_reboot = config_.devices.keep_on_reboot;
  if (!spec.named.empty()) {
    const NamedDisk named = co_await blocking(read_named_disk, spec.named, config_.paths.disks_dir);
    spec = named.spec;
    keep_on_reboot = named.options.keep_on_reboot.value_or(keep_on_reboot);
  }
  for (;;) {
    DiskPtr mine = find(node.path);
    DiskPtr disk = mine ? mine : find_same(node, asked);
    if (mine && (mine->note.asked != asked || mine->read_only != node.read_only))
      throw Error(EEXIST, text(node.path, " is in use with ", mine->note.asked,
                               " and cannot become ", asked, ". Detach the disk first."));
    if (!disk) break;
    if (disk->state == Disk::State::ready) {
      if (!mine) disk->note.vbds.push_back(node.path);
      if (node.vm_uuid != kDomainZero && disk->note.vm_uuid == kDomainZero) {
        disk->note.vm_uuid = node.vm_uuid;
        disk->note.vdev = node.vdev;
        disk->note.name = node.domain;
      }
      co_await note(disk);
      co_return disk;
    }
    co_await changed_.wait();
  }
  auto disk = std::make_shared<Disk>();
  disk->note.vm_uuid = node.vm_uuid;
  disk->note.vdev = node.vdev;
  disk->note.name = node.domain;
  disk->note.asked = asked;
  disk->note.vbds = {node.path};
  disk->note.keep_on_reboot = keep_on_reboot;
  disk->read_only = node.read_only;
  disk->transient = spec.top.kind == Component::Kind::transient;
  const std::string placeholder = "attaching " + node.path;
  disks_[placeholder] = disk;
  std::exception_ptr error;
  try {
    co_await check_others(node, spec);
    co_await attach(disk, node);
  } catch (...) {
    error = std::current_exception();
  }
  disks_.erase(placeholder);
  changed_.notify();
  if (error) std::rethrow_exception(error);
  disks_[disk->device] = disk;
  disk->state = Disk::State::ready;
  if (disk->saved) spawn(until_it_runs(disk), text("Waiting for ", node.domain, " to run"));
  co_return disk;
}

Task<> Vbds::attach(DiskPtr disk, const Node& node) {
  const std::string name = device_name(node.domain, node.vdev);
  for (unsigned number = 1;; ++number) {
    AttachRequest request;
    request.spec = node.params;
    request.name = number == 1 ? name : text(name, "-", number);
    request.read_only = node.read_only;
    request.domain = disk->note;
    std::optional<Error> failure;
    nlohmann::json device;
    try {
      device = co_await devices_.attach(std::move(request));
    } catch (const Error& error) {
      failure = error;
    }
    if (!failure) {
      disk->device = device.at("name").get<std::string>();
      break;
    }
    // The name of a device whose last user takes its time.
    if (failure->code() != EEXIST || number == 99) throw *failure;
  }
  auto entry = co_await devices_.entry(disk->device);
  disk->saved = entry && entry->store && entry->store->saved;
}

// Disks of other scripts (phy:) are seen by what they opened.
Task<> Vbds::check_others(const Node& node, const DiskSpec& spec) {
  struct Other {
    std::string path, device;
    bool writable;
  };
  auto read = [](XenHost& host) {
    std::vector<Other> others;
    for (const std::string& domid : host.list(kRoot))
      for (const std::string& devid : host.list(text(kRoot, "/", domid))) {
        const std::string path = text(kRoot, "/", domid, "/", devid);
        if (auto device = host.read(path + "/physical-device"))
          others.push_back({path, *device, host.read(path + "/mode").value_or("w") != "r"});
      }
    return others;
  };
  const std::vector<Other> others = co_await xen_.call(read);
  struct Use {
    Component component;
    bool writable;
  };
  std::vector<Use> uses{{spec.top, !node.read_only}};
  if (spec.base) uses.push_back({*spec.base, false});
  for (const Use& use : uses) {
    const StoreIdentity identity = co_await blocking(identify_store, use.component);
    for (const Other& other : others) {
      const std::optional<dev_t> device = dev_of(other.device);
      if (!device || !(use.writable || other.writable)) continue;
      const StoreIdentity theirs = co_await blocking(identify_device, *device);
      if (theirs == identity)
        throw Error(EBUSY, text(use.component.text(), " is given to a domain already (", other.path,
                                "), ", other.writable ? "which writes to it" : "which reads it",
                                ". Detach it there first."));
    }
  }
}

Task<nlohmann::json> Vbds::answer(const Disk& disk) {
  const std::string name = disk.device;
  auto info = co_await blocking(dm::info, name);
  co_return nlohmann::json{
      {"physical_device", xen_dev(info.dev)}, {"device", info.path}, {"name", name}};
}

Task<> Vbds::note(DiskPtr disk) {
  std::function<void(DeviceEntry&)> change = [noted = disk->note](DeviceEntry& entry) {
    entry.domain = noted;
  };
  co_await devices_.note(disk->device, change);
}

// --- the end of a disk ------------------------------------------------------

Task<> Vbds::remove(std::string path) { return on(strand_, remove_here(std::move(path))); }

Task<> Vbds::remove_here(std::string path) {
  if (node_path(path) != path)
    throw Error(EINVAL, text("\"", path, "\" is no path of a disk: backend/vbd/DOMID/DEVID."));
  while (!started_) co_await changed_.wait();
  if (find(path)) spawn(depart(path), text("The end of ", path));
}

//   domain                       persistent    transient
//   suspended (save, migration)  orderly       made durable, kept as `saved`
//   rebooting, keep_on_reboot    orderly       the same
//   never ran since its restore  orderly       stays `saved`
//   dying, or gone               what waits fails at once; a transient store goes (also when
//                                it dies after its disk was told to go, as with `xl destroy`)
//   anything else (detached)     orderly       goes
Task<> Vbds::depart(std::string path) {
  DiskPtr disk = find(path);
  if (!disk || disk->state != Disk::State::ready || !departing_.insert(path).second) co_return;
  const unsigned domid = domid_of(path);
  std::optional<XenDomain> domain;
  bool known = true;
  try {
    auto domains = co_await xen_.call(domains_of);
    if (auto* found = domain_in(domains, domid, disk->note.vm_uuid)) domain = *found;
  } catch (const Error& error) {
    log(Level::warning, text("Why ", path, " ends cannot be found out. ", error.what()));
    known = false;  // then nothing is thrown away on a guess
  }
  departing_.erase(path);
  std::vector<std::string>& vbds = disk->note.vbds;
  auto at = std::find(vbds.begin(), vbds.end(), path);
  if (at == vbds.end() || disk->state != Disk::State::ready) co_return;
  vbds.erase(at);
  if (domain && domain->shut_down)
    disk->note.keep = domain->reason == XenDomain::kSuspend ||
                      (domain->reason == XenDomain::kReboot && disk->note.keep_on_reboot);
  bool ran = domain ? domain->has_run : !disk->saved;
  if (!vbds.empty()) {
    co_await note(disk);
    co_return;
  }
  bool keep = disk->transient && (disk->note.keep || (disk->saved && !ran) || !known);
  bool dead = domid != 0 && known && (!domain || domain->dying);
  disk->state = Disk::State::leaving;
  try {
    co_await note(disk);
  } catch (const Error& error) {
    // The end goes on; a restarted cowd finds out for itself that the node has gone.
    log(Level::warning, error.what(), {disk->device, {}});
  }
  Device::Leaving how = keep   ? Device::Leaving::suspended
                        : dead ? Device::Leaving::dying
                               : Device::Leaving::orderly;
  disk->orderly = how == Device::Leaving::orderly && !disk->note.keep;
  co_await leave(disk, how, keep);
}

// Goes on trying: nobody else will end it, and what is to be kept may not be lost.
Task<> Vbds::leave(DiskPtr disk, Device::Leaving how, bool keep) {
  for (;;) {
    std::string why;
    try {
      if (disk->transient) co_await devices_.mark_saved(disk->device, keep);
      co_await devices_.leave(disk->device, how);
      co_return;
    } catch (const Error& error) {
      why = error.what();
    }
    std::string id = new_error_id();
    std::string sentence =
        text("The disk ", disk->note.vdev, " of ", disk->note.name, " (", disk->device,
             ") cannot be ", keep ? "saved" : "detached", ". ", why, " cowd goes on trying.");
    log(Level::error, sentence, {disk->device, id});
    events_.add("xen-error", disk->device, sentence, id);
    asio::steady_timer pause(strand_, kPreserveAgain);
    co_await pause.async_wait(asio::use_awaitable);
  }
}

void Vbds::gone(const std::string& device) {
  disks_.erase(device);
  changed_.notify();
}

// --- what happens around us -------------------------------------------------

void Vbds::changed(const std::vector<std::string>& paths) {
  if (!started_) return;
  std::set<std::string> nodes, others;
  bool released = false;
  for (const std::string& path : paths) {
    if (path == kRelease) released = true;
    if (path.ends_with("/physical-device") && !node_path(path).empty() && !find(node_path(path)))
      others.insert(node_path(path));
    // The deletion of a domain's directory is told once, by its own path.
    for (const auto& [device, disk] : disks_)
      for (const std::string& mine : disk->note.vbds)
        if (mine == path || mine.starts_with(path + "/") || node_path(path) == mine)
          nodes.insert(mine);
  }
  if (released) spawn(look_at_domains(), "Looking at the domains");
  for (const std::string& node : nodes) spawn(look_at_node(node), text("Looking at ", node));
  for (const std::string& node : others) spawn(look_at_other(node), text("Looking at ", node));
}

// A disk of another script (phy:), which asks nobody: it cannot be prevented, only told.
Task<> Vbds::look_at_other(std::string path) {
  struct Opened {
    std::optional<std::string> device;
    bool writes;
  };
  auto read = [path](XenHost& host) {
    return Opened{host.read(path + "/physical-device"),
                  host.read(path + "/mode").value_or("w") != "r"};
  };
  const Opened opened = co_await xen_.call(read);
  const std::optional<dev_t> number = opened.device ? dev_of(*opened.device) : std::nullopt;
  if (!number || find(path)) co_return;
  const StoreIdentity store = co_await blocking(identify_device, *number);
  const std::string device = co_await devices_.hindered(store, opened.writes);
  if (device.empty()) co_return;
  std::string id = new_error_id();
  std::string sentence =
      text("Domain ", domid_of(path), opened.writes ? " may write to" : " reads", " the device ",
           major(*number), ":", minor(*number), " (", path, "), which ", device,
           " is made of: what it finds there may be wrong, and what it writes there spoils ",
           device, ". Detach one of the two.");
  log(Level::error, sentence, {device, id});
  events_.add("foreign-user", device, sentence, id);
}

Task<> Vbds::look_at_node(std::string path) {
  auto there = [path](XenHost& host) { return host.read(path + "/params").has_value(); };
  if (!co_await xen_.call(there)) co_await depart(path);
}

Task<> Vbds::look_at_domains() {
  const auto domains = co_await xen_.call(domains_of);
  std::vector<std::string> over;
  std::vector<DiskPtr> disks;
  for (const auto& [device, disk] : disks_) disks.push_back(disk);
  for (const DiskPtr& disk : disks) {
    if (disk->state == Disk::State::leaving && disk->orderly &&
        !is_alive(domains, disk->note.vm_uuid)) {
      disk->orderly = false;
      spawn(devices_.abandon(disk->device), text("The end of ", disk->device));
    }
    if (disk->state != Disk::State::ready) continue;
    bool keep = disk->note.keep;
    for (const std::string& path : disk->note.vbds) {
      const unsigned domid = domid_of(path);
      if (domid == 0) continue;
      const XenDomain* domain = domain_in(domains, domid, disk->note.vm_uuid);
      if (!domain || domain->dying) {
        over.push_back(path);
        continue;
      }
      keep = domain->shut_down &&
             (domain->reason == XenDomain::kSuspend ||
              (domain->reason == XenDomain::kReboot && disk->note.keep_on_reboot));
    }
    if (keep == disk->note.keep) continue;
    disk->note.keep = keep;
    co_await note(disk);
  }
  for (const std::string& path : over) spawn(depart(path), text("The end of ", path));
}

// A restored domain that never ran (its restore failed) leaves its store as it was.
Task<> Vbds::until_it_runs(DiskPtr disk) {
  while (disk->state == Disk::State::ready && disk->saved) {
    asio::steady_timer pause(strand_, kRunPoll);
    co_await pause.async_wait(asio::use_awaitable);
    auto domains = co_await xen_.call(domains_of);
    for (const std::string& path : disk->note.vbds) {
      const XenDomain* domain = domain_in(domains, domid_of(path), disk->note.vm_uuid);
      if (!domain || !domain->has_run || disk->state != Disk::State::ready) continue;
      disk->saved = false;
      disk->note.keep = false;
      co_await devices_.mark_saved(disk->device, false);
      break;
    }
  }
}

// --- start, list ------------------------------------------------------------

Task<> Vbds::start() { return on(strand_, start_here()); }

Task<> Vbds::start_here() {
  // First: after it fails this object goes, and nothing of it may run on.
  auto watch = [](XenHost& host) {
    host.watch(kRelease);
    host.watch(kRoot);
    return true;
  };
  co_await xen_.call(watch);
  for (const DeviceEntry& entry : co_await devices_.entries()) {
    if (entry.domain.vm_uuid.empty()) continue;
    auto disk = std::make_shared<Disk>();
    disk->device = entry.name;
    disk->note = entry.domain;
    disk->read_only = entry.read_only;
    disk->transient = entry.store.has_value();
    disk->saved = entry.store && entry.store->saved;
    disk->state = entry.domain.vbds.empty() ? Disk::State::leaving : Disk::State::ready;
    disks_[entry.name] = disk;
    disk->orderly = disk->state == Disk::State::leaving && !disk->saved && !disk->note.keep;
    if (disk->state == Disk::State::leaving)
      spawn(leave(disk, disk->saved ? Device::Leaving::suspended : Device::Leaving::orderly,
                  disk->saved),
            text("The end of ", entry.name));
    else if (disk->saved)
      spawn(until_it_runs(disk), text("Waiting for ", entry.domain.name, " to run"));
  }
  started_ = true;
  changed_.notify();
  // What happened while no cowd ran.
  std::vector<std::string> paths;
  for (const auto& [device, disk] : disks_)
    paths.insert(paths.end(), disk->note.vbds.begin(), disk->note.vbds.end());
  spawn(look_at_domains(), "Looking at the domains");
  for (const std::string& path : paths) spawn(look_at_node(path), text("Looking at ", path));
}

Task<nlohmann::json> Vbds::list() { return on(strand_, list_here()); }

Task<nlohmann::json> Vbds::list_here() {
  nlohmann::json vbds = nlohmann::json::array();
  for (const auto& [device, disk] : disks_) {
    const char* state = disk->state == Disk::State::ready       ? "ready"
                        : disk->state == Disk::State::attaching ? "attaching"
                                                                : "leaving";
    std::vector<std::string> paths = disk->note.vbds;
    if (paths.empty()) paths.emplace_back();  // left by all, its device still there
    for (const std::string& path : paths)
      vbds.push_back(
          {{"path", path},
           {"domid", path.empty() ? nlohmann::json() : nlohmann::json(domid_of(path))},
           {"devid", path.empty() ? nlohmann::json()
                                  : nlohmann::json(std::stoul(path.substr(path.rfind('/') + 1)))},
           {"vdev", disk->note.vdev},
           {"vm_uuid", disk->note.vm_uuid},
           {"domain", disk->note.name},
           {"spec", disk->note.asked},
           {"device", disk->device},
           {"state", state},
           {"transient", disk->transient}});
  }
  co_return nlohmann::json{{"vbds", std::move(vbds)}};
}

}  // namespace cowd
