// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/vbds.hh"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "cowd/core/disk_options.hh"
#include "cowd/core/error.hh"
#include "cowd/daemon/blocking_call.hh"
#include "cowd/daemon/error_id.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/on.hh"
#include "cowd/daemon/text.hh"
#include "cowd/daemon/vbds_disk.hh"

namespace cowd {

namespace asio = boost::asio;

namespace {

// What a disk is to be made of, and what another script has opened.
struct Use {
  Component component;
  bool writable;
};
struct Other {
  std::string path, device;
  bool writable;
};

// Blocks. Each device is looked at once, whoever and how many have it.
std::optional<std::pair<Use, Other>> first_clash(const std::vector<Use>& ours,
                                                 const std::vector<Other>& others) {
  std::vector<StoreIdentity> identities;
  for (const Use& use : ours) identities.push_back(identify_store(use.component));
  std::map<std::string, std::optional<StoreIdentity>> seen;
  for (const Other& other : others) {
    auto at = seen.find(other.device);
    if (at == seen.end()) {
      const std::optional<dev_t> number = dev_of(other.device);
      at = seen.emplace(other.device,
                        number ? std::optional(identify_device(*number)) : std::nullopt)
               .first;
    }
    for (size_t i = 0; i < ours.size(); ++i)
      if (at->second == identities[i] && (ours[i].writable || other.writable))
        return std::pair(ours[i], other);
  }
  return std::nullopt;
}

}  // namespace

Vbds::Vbds(asio::io_context& io, DomainDevices& devices, EventRing& events, const Config& config,
           std::unique_ptr<XenHost> host, Pauses pauses)
    : devices_(devices),
      events_(events),
      config_(config),
      pauses_(pauses),
      strand_(asio::make_strand(io)),
      changed_(strand_),
      xen_(std::move(host), [this](std::vector<std::string> paths) { hear(std::move(paths)); }) {
  devices_.on_gone([this](const DeviceEntry& entry) {
    if (entry.domain.vm_uuid.empty()) return;
    asio::post(strand_, [this, name = entry.name, uuid = entry.uuid] { gone(name, uuid); });
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
    fail("", text(what, " went wrong. ", why));
  });
}

void Vbds::fail(const std::string& device, const std::string& sentence, const char* type) {
  const std::string id = new_error_id();
  log(Level::error, sentence, {device, id});
  events_.add(type, device, sentence, id);
}

Vbds::DiskPtr Vbds::find(const std::string& path) const {
  for (const auto& [device, disk] : disks_)
    if (std::find(disk->note.vbds.begin(), disk->note.vbds.end(), path) != disk->note.vbds.end())
      return disk;
  return nullptr;
}

// One device serves the domains of one VM: a migration on one host has two.
Vbds::DiskPtr Vbds::find_same(const Node& node, const std::string& asked) const {
  for (const auto& [device, disk] : disks_) {
    const DomainNote& note = disk->note;
    if (note.asked == asked && disk->read_only == node.read_only && note.vdev == node.vdev &&
        note.vm_uuid == node.vm_uuid)
      return disk;
  }
  return nullptr;
}

// What domain 0 has and a guest asks for, or the reverse, where one of them would write. A
// transient store is nobody else's, and any number may read.
Vbds::DiskPtr Vbds::find_rival(const Node& node, const std::string& asked) const {
  for (const auto& [device, disk] : disks_) {
    bool beside = (disk->note.vm_uuid == kDomainZero) != (node.vm_uuid == kDomainZero);
    bool written = !disk->read_only || !node.read_only;
    if (disk->note.asked == asked && beside && written && !disk->transient) return disk;
  }
  return nullptr;
}

// --- add --------------------------------------------------------------------

Task<nlohmann::json> Vbds::add(std::string path, std::function<Task<>()> still_wanted) {
  return on(strand_, add_here(std::move(path), std::move(still_wanted)));
}

Task<nlohmann::json> Vbds::add_here(std::string path, std::function<Task<>()> still_wanted) {
  check_vbd_node(path);
  while (!started_) co_await changed_.wait();
  ++adds_[path];
  nlohmann::json answer;
  std::exception_ptr error;
  try {
    answer = co_await add_one(path, std::move(still_wanted));
  } catch (...) {
    error = std::current_exception();
  }
  if (--adds_[path] == 0) {
    adds_.erase(path);
    // What was made for one that nobody waits for any more is the next one's, if there is one.
    DiskPtr disk = find(path);
    if (disk && stays(disk, path) && !disk->given.contains(path))
      spawn(depart(path), text("The end of ", path));
  }
  if (error) std::rethrow_exception(error);
  co_return answer;
}

Task<nlohmann::json> Vbds::add_one(const std::string& path, std::function<Task<>()> still_wanted) {
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
    co_return co_await give(node, disk, std::move(still_wanted));
  } catch (const Error& error) {
    failure = error;
  }
  throw GuestError(*failure, text("The disk ", vdev));
}

// The script may have given up, or the node or its domain may have gone, while we worked.
Task<nlohmann::json> Vbds::give(const Node& node, DiskPtr disk,
                                std::function<Task<>()> still_wanted) {
  const Error given_up(ECANCELED,
                       text("The disk ", node.path, " was given up while it was attached."));
  bool wanted = true;
  try {
    co_await still_wanted();
  } catch (const Error&) {
    wanted = false;
  }
  if (!wanted) throw given_up;
  nlohmann::json json = co_await answer(*disk);
  auto used = [path = node.path, vm_uuid = node.vm_uuid](XenHost& host) {
    return has_user(host, host.domains(), path, vm_uuid);
  };
  const bool there = co_await xen_.call(used);
  if (!stays(disk, node.path)) throw given_up;
  if (!there) {
    spawn(depart(node.path), text("The end of ", node.path));
    throw given_up;
  }
  disk->given.insert(node.path);
  co_return json;
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
  DiskPtr disk = co_await join(node, asked);
  if (disk) co_return disk;
  co_return co_await make(node, spec, asked, keep_on_reboot);
}

// Whether it is this node's, and nothing says that it will not be.
bool Vbds::stays(const DiskPtr& disk, const std::string& path) const {
  return find(path) == disk && disk->state == Disk::State::ready && !departing_.contains(path);
}

// The disk that is there already. None: there is no other in the way, either.
Task<Vbds::DiskPtr> Vbds::join(const Node& node, const std::string& asked) {
  for (;;) {
    DiskPtr mine = find(node.path);
    // Another one, if it is not: of a node of that name that has gone.
    const bool same = mine && mine->note.asked == asked && mine->read_only == node.read_only &&
                      mine->note.vm_uuid == node.vm_uuid;
    DiskPtr disk = mine ? mine : find_same(node, asked);
    DiskPtr rival = disk ? nullptr : find_rival(node, asked);
    DiskPtr other = disk ? disk : rival;
    if (!other) co_return nullptr;
    if (same && stays(mine, node.path)) {
      co_await note(mine);
      co_return mine;
    }
    if (other->state == Disk::State::ready && !departing_.contains(node.path)) {
      const Users users =
          mine ? co_await users_of_former(node.path, mine) : co_await users_of(other);
      if (other->state != Disk::State::ready) continue;
      if (users == Users::none) {
        // Which nobody may have told us yet.
        std::vector<std::string> ended{node.path};
        if (!mine) ended = other->note.vbds;
        for (const std::string& each : ended) spawn(depart(each), text("The end of ", each));
      } else if (mine) {
        throw Error(EEXIST, text(node.path, " is in use with ", mine->note.asked,
                                 " and cannot become ", asked, ". Detach the disk first."));
      } else if (rival) {
        throw Error(EBUSY, text(asked, " is given to ", rival->note.name, " already (",
                                rival->note.vbds.front(),
                                "), and one of the two would write to what the other has. Detach "
                                "it there first."));
      } else if (users == Users::running && !disk->read_only && domid_of(node.path) != 0) {
        throw Error(EBUSY, text(asked, " is in use by another domain of the same VM (",
                                disk->note.vbds.front(),
                                "), which runs: both would write to it. End that one first."));
      } else {
        disk->note.vbds.push_back(node.path);
        co_await note(disk);
        co_return disk;
      }
    }
    co_await changed_.wait();
  }
}

Task<Vbds::Users> Vbds::users_of(DiskPtr disk) {
  auto look = [nodes = disk->note.vbds, vm_uuid = disk->note.vm_uuid](XenHost& host) {
    const std::vector<XenDomain> domains = host.domains();
    Users users = Users::none;
    for (const std::string& node : nodes) {
      if (!has_user(host, domains, node, vm_uuid)) continue;
      const XenDomain* domain = domain_of(domains, node, vm_uuid);
      const bool runs = !domain || !domain->shut_down;
      if (runs || users == Users::none) users = runs ? Users::running : Users::stopped;
    }
    return users;
  };
  co_return co_await xen_.call(look);
}

// Of a disk that a node of that name had. What no add was answered for is nobody's, and a node
// that was made anew says so by having no device yet.
Task<Vbds::Users> Vbds::users_of_former(const std::string& path, DiskPtr disk) {
  if (!disk->given.contains(path)) co_return Users::none;
  auto look = [path, vm_uuid = disk->note.vm_uuid](XenHost& host) {
    return host.read(path + "/physical-device") && lives(host.domains(), path, vm_uuid)
               ? Users::running
               : Users::none;
  };
  co_return co_await xen_.call(look);
}

Task<Vbds::DiskPtr> Vbds::make(const Node& node, const DiskSpec& spec, const std::string& asked,
                               bool keep_on_reboot) {
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
  if (!error) try {
      // From here on we hear of its end, but not of one before.
      disks_[disk->device] = disk;
      const auto entry = co_await devices_.entry(disk->device);
      if (!entry) gone(disk->device, disk->uuid);
      if (disk->state != Disk::State::attaching)
        throw Error(ENODEV, text("The device ", disk->device, " was removed as it was made."));
      disk->saved = entry->store && entry->store->saved;
      disk->state = Disk::State::ready;
    } catch (...) {
      error = std::current_exception();
    }
  changed_.notify();
  if (error) std::rethrow_exception(error);
  if (disk->saved) spawn(until_it_runs(disk), text("Waiting for ", node.domain, " to run"));
  co_return disk;
}

Task<> Vbds::attach(DiskPtr disk, const Node& node) {
  const std::string name = vbd_device_name(node.domain, node.vdev);
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
      disk->uuid = device.at("uuid").get<std::string>();
      co_return;
    }
    // The name of a device whose last user takes its time.
    if (failure->code() != EEXIST || number == 99) throw *failure;
  }
}

// Disks of other scripts (phy:) are seen by what they opened.
Task<> Vbds::check_others(const Node& node, const DiskSpec& spec) {
  std::vector<Use> ours;
  if (spec.top.kind != Component::Kind::transient) ours.push_back({spec.top, !node.read_only});
  if (spec.base) ours.push_back({*spec.base, false});
  if (ours.empty()) co_return;  // all nodes of the host are more than is read for nothing
  auto read = [](XenHost& host) {
    std::vector<Other> others;
    for (const std::string& domid : host.list(kVbdRoot))
      for (const std::string& devid : host.list(text(kVbdRoot, "/", domid))) {
        const std::string path = text(kVbdRoot, "/", domid, "/", devid);
        if (auto device = host.read(path + "/physical-device"))
          others.push_back({path, *device, host.read(path + "/mode").value_or("w") != "r"});
      }
    return others;
  };
  const auto clash = co_await blocking(first_clash, std::move(ours), co_await xen_.call(read));
  if (!clash) co_return;
  const auto& [use, other] = *clash;
  throw Error(EBUSY, text(use.component.text(), " is given to a domain already (", other.path,
                          "), ", other.writable ? "which writes to it" : "which reads it",
                          ". Detach it there first."));
}

Task<nlohmann::json> Vbds::answer(const Disk& disk) {
  const std::string name = disk.device;
  const dm::Info info = co_await devices_.mapping(name);
  co_return nlohmann::json{
      {"physical_device", xen_dev(info.dev)}, {"device", info.path}, {"name", name}};
}

Task<> Vbds::note(DiskPtr disk) {
  std::function<void(DeviceEntry&)> change = [noted = disk->note](DeviceEntry& entry) {
    entry.domain = noted;
  };
  co_await devices_.note(disk->device, change);
}

// --- list ------------------------------------------------------------------

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
