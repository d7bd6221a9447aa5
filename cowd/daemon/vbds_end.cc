// SPDX-License-Identifier: GPL-2.0-or-later
// Vbds: how disks end, and what is heard of Xen.
#include <sys/sysmacros.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <iterator>
#include <utility>

#include "cowd/core/error.hh"
#include "cowd/daemon/blocking_call.hh"
#include "cowd/daemon/left_ends.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/on.hh"
#include "cowd/daemon/text.hh"
#include "cowd/daemon/vbds_disk.hh"

namespace cowd {

namespace asio = boost::asio;

namespace {

constexpr const char* kRelease = "@releaseDomain";
constexpr const char* kDeviceKey = "/physical-device";

// The real ones, and of those that have gone what was left of their end.
std::vector<XenDomain> domains_and_ends(XenHost& host, const std::string& run_dir) {
  std::vector<XenDomain> domains = host.domains();
  for (const XenDomain& end : left_ends(run_dir)) {
    const auto same = [&](const XenDomain& each) {
      return each.id == end.id && each.uuid == end.uuid;
    };
    if (std::none_of(domains.begin(), domains.end(), same)) domains.push_back(end);
  }
  return domains;
}

// Whether a store outlives what is seen of the domains that these nodes are of. Of a domain that
// is there this is asked anew each time: it may go on after its suspension (xl save -c, a
// migration that failed), and no event tells. Of domains that have gone, what was seen last stands.
bool keep_of(const DomainNote& note, const std::vector<std::string>& nodes,
             const std::vector<XenDomain>& domains) {
  bool seen = false, keep = true;
  for (const std::string& node : nodes) {
    const XenDomain* domain = domain_of(domains, node, note.vm_uuid);
    if (!domain) continue;
    seen = true;
    keep = keep && domain->shut_down &&
           (domain->reason == XenDomain::kSuspend ||
            (domain->reason == XenDomain::kReboot && note.keep_on_reboot));
  }
  return seen ? keep : note.keep;
}

// Of a disk that all have left. The same VM may have its next domain already, which waits for
// this end. Of what an older cowd noted it is not known whose end it is: then nothing is cut short.
bool last_lives(const std::vector<XenDomain>& domains, const DomainNote& note) {
  return note.last_vbd.empty() || lives(domains, note.last_vbd, note.vm_uuid);
}

}  // namespace

Task<> Vbds::remove(std::string path) { return on(strand_, remove_here(std::move(path))); }

Task<> Vbds::remove_here(std::string path) {
  check_vbd_node(path);
  while (!started_) co_await changed_.wait();
  co_await depart(path);
}

std::function<std::vector<XenDomain>(XenHost&)> Vbds::domains_now() const {
  return
      [run_dir = config_.paths.run_dir](XenHost& host) { return domains_and_ends(host, run_dir); };
}

// Returns when it is noted that the node's domain has the disk no more; what follows from that
// goes on by itself.
Task<> Vbds::depart(std::string path) {
  while (departing_.contains(path)) co_await changed_.wait();
  DiskPtr disk = find(path);
  if (!disk || disk->state != Disk::State::ready) co_return;
  departing_.insert(path);
  std::optional<std::vector<XenDomain>> domains;
  try {
    auto list = domains_now();
    domains = co_await xen_.call(list);
  } catch (const Error& error) {
    log(Level::warning, text("Why ", path, " ends cannot be found out. ", error.what()));
  }
  std::optional<Device::Leaving> how;
  std::exception_ptr unnoted;
  std::vector<std::string>& vbds = disk->note.vbds;
  const auto at = std::find(vbds.begin(), vbds.end(), path);
  if (at != vbds.end() && disk->state == Disk::State::ready) {
    vbds.erase(at);
    disk->given.erase(path);
    if (vbds.empty()) {
      disk->note.last_vbd = path;
      how = decide(*disk, domains);
      // Before anything is awaited: whatever is heard from here on finds it leaving.
      disk->state = Disk::State::leaving;
    } else {
      if (domains) disk->note.keep = keep_of(disk->note, vbds, *domains);
      watch_kept(disk);
    }
    try {
      co_await note(disk);
    } catch (const Error&) {
      // The end goes on; a restarted cowd finds out for itself that the node has gone.
      unnoted = std::current_exception();
    }
  }
  departing_.erase(path);
  changed_.notify();
  if (how) spawn(leave(disk, *how), text("The end of ", disk->device));
  if (unnoted) std::rethrow_exception(unnoted);
  co_await forget_ends();
}

// Of domains that no disk of ours is of any more.
Task<> Vbds::forget_ends() {
  std::set<unsigned> still;
  for (const auto& [device, disk] : disks_)
    for (const std::string& node : disk->note.vbds) still.insert(domid_of(node));
  co_await blocking(forget_left_ends, config_.paths.run_dir, still);
}

//   domain                       persistent    transient
//   suspended (save, migration)  orderly       made durable, kept as `saved`
//   rebooting, keep_on_reboot    orderly       the same
//   never ran since its restore  orderly       stays `saved`
//   dying, or gone               what waits fails at once; a transient store goes (also when
//                                it dies after its disk was told to go, as with `xl destroy`)
//   anything else (detached)     orderly       goes
//
// `domains` are those of now; none: they cannot be found out, and nothing is thrown away on a
// guess.
Device::Leaving Vbds::decide(Disk& disk, const std::optional<std::vector<XenDomain>>& domains) {
  DomainNote& note = disk.note;
  const XenDomain* domain = domains ? domain_of(*domains, note.last_vbd, note.vm_uuid) : nullptr;
  if (domains) note.keep = keep_of(note, {note.last_vbd}, *domains);
  const bool ran = domain ? domain->has_run : !disk.saved;
  if ((disk.saved && !ran) || (disk.transient && !domains)) note.keep = true;
  if (disk.transient && note.keep) return Device::Leaving::suspended;
  if (domains && !lives(*domains, note.last_vbd, note.vm_uuid)) return Device::Leaving::dying;
  disk.orderly = !note.keep;
  return Device::Leaving::orderly;
}

// Goes on trying: nobody else will end it, and what is to be kept may not be lost.
Task<> Vbds::leave(DiskPtr disk, Device::Leaving how) {
  const bool keep = how == Device::Leaving::suspended;
  for (std::string told;;) {
    std::string why;
    try {
      if (disk->transient) co_await mark_saved(disk, keep);
      co_await devices_.leave(disk->device, how);
    } catch (const Error& error) {
      why = error.what();
    }
    if (why.empty()) break;
    if (why != told)
      fail(disk->device,
           text("The disk ", disk->note.vdev, " of ", disk->note.name, " (", disk->device,
                ") cannot be ", keep ? "saved" : "detached", ". ", why, " cowd goes on trying."));
    told = why;
    asio::steady_timer pause(strand_, pauses_.again);
    co_await pause.async_wait(asio::use_awaitable);
  }
  // It may have gone before we knew of it, and nobody tells twice.
  const auto entry = co_await devices_.entry(disk->device);
  if (!entry || entry->uuid != disk->uuid) gone(disk->device, disk->uuid);
}

// A domain that is saved again right after its restore meets the end of its first mark.
Task<> Vbds::mark_saved(DiskPtr disk, bool saved) {
  while (disk->marking) co_await changed_.wait();
  disk->marking = true;
  std::exception_ptr error;
  try {
    co_await devices_.mark_saved(disk->device, saved);
  } catch (...) {
    error = std::current_exception();
  }
  disk->marking = false;
  changed_.notify();
  if (error) std::rethrow_exception(error);
}

void Vbds::gone(const std::string& device, const std::string& uuid) {
  auto found = disks_.find(device);
  if (found == disks_.end() || found->second->uuid != uuid) return;
  found->second->state = Disk::State::leaving;  // for those who hold it still
  disks_.erase(found);
  changed_.notify();
}

// --- what happens around us -------------------------------------------------

// On Xen's thread. Of what is touched again and again before we come to it, once is enough.
void Vbds::hear(std::vector<std::string> paths) {
  const std::lock_guard lock(heard_mutex_);
  const bool told = !heard_.empty();
  heard_.insert(std::make_move_iterator(paths.begin()), std::make_move_iterator(paths.end()));
  if (!told) asio::post(strand_, [this] { changed(); });
}

void Vbds::changed() {
  std::set<std::string> heard;
  {
    const std::lock_guard lock(heard_mutex_);
    heard.swap(heard_);
  }
  if (!started_) return;
  std::set<std::string> mine, nodes, others;
  for (const auto& [device, disk] : disks_)
    mine.insert(disk->note.vbds.begin(), disk->note.vbds.end());
  for (const std::string& path : heard) {
    const std::string node = vbd_node(path);
    if (mine.contains(node)) nodes.insert(node);
    if (!node.empty() && !mine.contains(node) && path.ends_with(kDeviceKey)) others.insert(node);
    if (!node.empty()) continue;
    // The deletion of a domain's directory is told once, by its own path.
    const std::string below = path + "/";
    for (auto it = mine.lower_bound(below); it != mine.end() && it->starts_with(below); ++it)
      nodes.insert(*it);
  }
  if (heard.contains(kRelease)) begin_look(look_at_domains(), kRelease);
  for (const std::string& node : nodes) begin_look(look_at_node(node), node);
  for (const std::string& node : others) begin_look(look_at_other(node), node + kDeviceKey);
}

void Vbds::begin_look(Task<> at, const std::string& heard) {
  ++looks_;
  spawn(look(std::move(at), heard), text("Looking at ", heard));
}

// What was heard of once and could not be looked at then, nobody tells of again.
Task<> Vbds::look(Task<> at, std::string heard) {
  std::string why;
  try {
    co_await std::move(at);
  } catch (const Error& error) {
    why = error.what();
  }
  --looks_;
  if (why.empty()) co_return;
  if (missed_told_.insert(why).second)
    fail("", text(heard == kRelease ? "The domains" : heard, " cannot be looked at. ", why,
                  " cowd goes on trying."));
  if (!looks_again_) spawn(look_again(), "Looking again");
  looks_again_ = true;
  missed_.insert(std::move(heard));
}

Task<> Vbds::look_again() {
  for (;;) {
    asio::steady_timer pause(strand_, pauses_.again);
    co_await pause.async_wait(asio::use_awaitable);
    if (missed_.empty() && !looks_) break;
    const std::set<std::string> missed = std::exchange(missed_, {});
    if (missed.empty()) continue;
    hear({missed.begin(), missed.end()});
  }
  missed_told_.clear();
  looks_again_ = false;
}

// A disk of another script (phy:), which asks nobody: it cannot be prevented, only told.
Task<> Vbds::look_at_other(std::string path) {
  struct Opened {
    std::optional<std::string> device;
    bool writes;
  };
  auto read = [path](XenHost& host) {
    return Opened{host.read(path + kDeviceKey), host.read(path + "/mode").value_or("w") != "r"};
  };
  const Opened opened = co_await xen_.call(read);
  const std::optional<dev_t> number = opened.device ? dev_of(*opened.device) : std::nullopt;
  if (!number || find(path)) co_return;
  const StoreIdentity store = co_await blocking(identify_device, *number);
  const std::string device = co_await devices_.hindered(store, opened.writes);
  if (device.empty()) co_return;
  const std::string sentence =
      text("Domain ", domid_of(path), opened.writes ? " may write to" : " reads", " the device ",
           major(*number), ":", minor(*number), " (", path, "), which ", device,
           " is made of: what it finds there may be wrong, and what it writes there spoils ",
           device, ". Detach one of the two.");
  fail(device, sentence, "foreign-user");
}

Task<> Vbds::look_at_node(std::string path) {
  auto there = [path](XenHost& host) { return host.read(path + "/params").has_value(); };
  if (!co_await xen_.call(there)) co_await depart(path);
}

Task<> Vbds::look_at_domains() {
  auto list = domains_now();
  const auto domains = co_await xen_.call(list);
  std::vector<std::string> over;
  std::vector<DiskPtr> noted;
  // Nothing is awaited in here: by then these domains could be older than what others saw.
  for (const auto& [device, disk] : disks_) {
    DomainNote& note = disk->note;
    if (disk->state == Disk::State::leaving && disk->orderly && !last_lives(domains, note)) {
      disk->orderly = false;
      spawn(devices_.abandon(device), text("The end of ", device));
    }
    if (disk->state != Disk::State::ready) continue;
    for (const std::string& node : note.vbds)
      if (!lives(domains, node, note.vm_uuid)) over.push_back(node);
    const bool keep = keep_of(note, note.vbds, domains);
    if (keep == note.keep) continue;
    note.keep = keep;
    noted.push_back(disk);
  }
  for (const std::string& node : over) spawn(depart(node), text("The end of ", node));
  for (const DiskPtr& disk : noted) {
    watch_kept(disk);
    spawn(note(disk), text("Noting the domain of ", disk->device));
  }
}

// A restored domain that never ran (its restore failed) leaves its store as it was.
Task<> Vbds::until_it_runs(DiskPtr disk) {
  while (disk->state == Disk::State::ready && disk->saved) {
    asio::steady_timer pause(strand_, pauses_.look);
    co_await pause.async_wait(asio::use_awaitable);
    std::vector<XenDomain> domains;
    try {
      auto list = domains_now();
      domains = co_await xen_.call(list);
    } catch (const Error&) {
      continue;  // Xen answers the next time, or whoever needs it more complains
    }
    if (disk->state != Disk::State::ready) co_return;
    bool runs = false;
    for (const std::string& node : disk->note.vbds) {
      const XenDomain* domain = domain_of(domains, node, disk->note.vm_uuid);
      runs = runs || (domain && domain->has_run);
    }
    if (!runs) continue;
    disk->saved = false;
    co_await unmark(disk);
  }
}

// Until it is done: a store that has changed may not be taken for the saved one's.
Task<> Vbds::unmark(DiskPtr disk) {
  for (std::string told; disk->state == Disk::State::ready;) {
    std::string why;
    try {
      co_await mark_saved(disk, false);
      co_return;
    } catch (const Error& error) {
      why = error.what();
    }
    if (why != told)
      log(Level::warning,
          text("The store of ", disk->device, " is still marked as saved. ", why,
               " cowd goes on trying."),
          {disk->device, {}});
    told = why;
    asio::steady_timer pause(strand_, pauses_.again);
    co_await pause.async_wait(asio::use_awaitable);
  }
}

void Vbds::watch_kept(DiskPtr disk) {
  if (!disk->note.keep || disk->watched) return;
  disk->watched = true;
  spawn(until_it_goes_on(disk), text("Waiting for ", disk->note.name, " to go on or end"));
}

// A suspended domain that goes on makes no event either; until that is seen, its store would be
// kept if it ended while no cowd looks.
Task<> Vbds::until_it_goes_on(DiskPtr disk) {
  while (disk->state == Disk::State::ready && disk->note.keep) {
    asio::steady_timer pause(strand_, pauses_.look);
    co_await pause.async_wait(asio::use_awaitable);
    try {
      co_await look_at_domains();
    } catch (const Error&) {
      continue;  // as above
    }
  }
  disk->watched = false;
}

// --- start ------------------------------------------------------------------

Task<> Vbds::start() { return on(strand_, start_here()); }

void Vbds::watch(XenHost& host) {
  host.watch(kRelease);
  host.watch(kVbdRoot);
}

Task<> Vbds::start_here() {
  for (const DeviceEntry& entry : co_await devices_.entries()) take_up(entry);
  started_ = true;
  changed_.notify();
  // What happened while no cowd ran.
  std::vector<std::string> paths{kRelease};
  for (const auto& [device, disk] : disks_)
    paths.insert(paths.end(), disk->note.vbds.begin(), disk->note.vbds.end());
  hear(std::move(paths));
  co_await forget_ends();
}

// What an earlier cowd had. Whether a store is kept was decided, and noted, before the store was
// marked: the mark tells only how far that one came.
void Vbds::take_up(const DeviceEntry& entry) {
  if (entry.domain.vm_uuid.empty()) return;
  auto disk = std::make_shared<Disk>();
  disk->device = entry.name;
  disk->uuid = entry.uuid;
  disk->note = entry.domain;
  disk->read_only = entry.read_only;
  disk->transient = entry.store.has_value();
  disk->saved = entry.store && entry.store->saved;
  disks_[entry.name] = disk;
  const bool keep = entry.domain.keep;
  if (!entry.domain.vbds.empty()) {
    disk->state = Disk::State::ready;
    disk->given.insert(entry.domain.vbds.begin(), entry.domain.vbds.end());
    watch_kept(disk);
    if (disk->saved) spawn(until_it_runs(disk), text("Waiting for ", disk->note.name, " to run"));
    return;
  }
  disk->state = Disk::State::leaving;
  disk->orderly = !keep;
  const bool suspended = disk->transient && keep;
  spawn(leave(disk, suspended ? Device::Leaving::suspended : Device::Leaving::orderly),
        text("The end of ", entry.name));
}

}  // namespace cowd
