// SPDX-License-Identifier: GPL-2.0-or-later
// Disks of domains: from a node backend/vbd/DOMID/DEVID in XenStore to a device, and from
// the end of the domain to the end of the device.
//
// A disk is attached when its hotplug script asks for it (add); until then its node is not
// looked at. It is left by the first of: the script (remove), the deletion of its node,
// the end of its domain; none of them is relied on, and after a restart of cowd all three
// are looked for again. One device may have several nodes: those of one VM (a migration on
// one host has two domains for a while) and domain 0's (pygrub reads the disk first).
//
// What happens to a transient store is decided by why its domain ended: see decide().
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "cowd/daemon/config.hh"
#include "cowd/daemon/domain_devices.hh"
#include "cowd/daemon/event_ring.hh"
#include "cowd/daemon/signal_event.hh"
#include "cowd/daemon/xen_thread.hh"

namespace cowd {

// The coroutines may be awaited from any executor.
class Vbds {
 public:
  // How often is looked for what makes no event, and how soon what failed is tried again.
  struct Pauses {
    std::chrono::milliseconds look{1000};
    std::chrono::milliseconds again{5000};
  };

  Vbds(boost::asio::io_context& io, DomainDevices& devices, EventRing& events, const Config& config,
       std::unique_ptr<XenHost> host, Pauses pauses);
  ~Vbds();

  // What `host` has to hear of, before it is given to us.
  static void watch(XenHost& host);

  // At start, when the manager has taken up its devices. If it throws it may be called again.
  Task<> start();

  // Returns when the disk can be used. `still_wanted` throws when nobody waits any more.
  // Throws GuestError.
  Task<nlohmann::json> add(std::string path, std::function<Task<>()> still_wanted);
  // Returns when the end has begun and is noted: how it ends is certain from then on. Fine for a
  // node that is not ours.
  Task<> remove(std::string path);
  Task<nlohmann::json> list();

 private:
  struct Node;
  struct Disk;
  using DiskPtr = std::shared_ptr<Disk>;

  Task<nlohmann::json> add_here(std::string path, std::function<Task<>()> still_wanted);
  Task<nlohmann::json> add_one(const std::string& path, std::function<Task<>()> still_wanted);
  Task<nlohmann::json> give(const Node& node, DiskPtr disk, std::function<Task<>()> still_wanted);
  Task<DiskPtr> join_or_make(const Node& node);
  Task<DiskPtr> join(const Node& node, const std::string& asked);
  Task<DiskPtr> make(const Node& node, const DiskSpec& spec, const std::string& asked,
                     bool keep_on_reboot);
  enum class Users { none, stopped, running };
  Task<Users> users_of(DiskPtr disk);
  Task<Users> users_of_former(const std::string& path, DiskPtr disk);
  bool stays(const DiskPtr& disk, const std::string& path) const;
  Task<> attach(DiskPtr disk, const Node& node);
  Task<> check_others(const Node& node, const DiskSpec& spec);
  Task<nlohmann::json> answer(const Disk& disk);
  Task<> start_here();
  void take_up(const DeviceEntry& entry);
  Task<nlohmann::json> list_here();
  Task<> remove_here(std::string path);
  Task<> depart(std::string path);
  Device::Leaving decide(Disk& disk, const std::optional<std::vector<XenDomain>>& domains);
  Task<> leave(DiskPtr disk, Device::Leaving how);
  Task<> mark_saved(DiskPtr disk, bool saved);
  std::function<std::vector<XenDomain>(XenHost&)> domains_now() const;
  Task<> forget_ends();
  void begin_look(Task<> at, const std::string& heard);
  Task<> look(Task<> at, std::string heard);
  Task<> look_again();
  Task<> look_at_domains();
  Task<> look_at_node(std::string path);
  Task<> look_at_other(std::string path);
  Task<> until_it_runs(DiskPtr disk);
  Task<> unmark(DiskPtr disk);
  Task<> until_it_goes_on(DiskPtr disk);
  void watch_kept(DiskPtr disk);
  Task<> note(DiskPtr disk);
  void hear(std::vector<std::string> paths);
  void changed();
  void gone(const std::string& device, const std::string& uuid);
  void spawn(Task<> task, const std::string& what);
  void fail(const std::string& device, const std::string& sentence, const char* type = "xen-error");
  DiskPtr find(const std::string& path) const;
  DiskPtr find_same(const Node& node, const std::string& asked) const;
  DiskPtr find_rival(const Node& node, const std::string& asked) const;

  DomainDevices& devices_;
  EventRing& events_;
  const Config& config_;
  const Pauses pauses_;
  boost::asio::strand<boost::asio::io_context::executor_type> strand_;

  // On strand_:
  std::map<std::string, DiskPtr> disks_;  // by device
  std::set<std::string> departing_;       // paths
  std::map<std::string, unsigned> adds_;  // under way, by path
  std::set<std::string> missed_;          // paths heard of that could not be looked at
  std::set<std::string> missed_told_;     // why, as far as it was said
  bool looks_again_ = false;              // look_again() runs
  unsigned looks_ = 0;                    // that are under way
  bool started_ = false;
  SignalEvent changed_;

  std::mutex heard_mutex_;
  std::set<std::string> heard_;  // paths that changed, for the next changed()

  XenThread xen_;
};

}  // namespace cowd
