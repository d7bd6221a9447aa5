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
// What happens to a transient store is decided by why its domain ended: see depart().
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <vector>

#include "cowd/daemon/config.hh"
#include "cowd/daemon/device_manager.hh"
#include "cowd/daemon/event_ring.hh"
#include "cowd/daemon/signal_event.hh"
#include "cowd/daemon/xen_thread.hh"

namespace cowd {

// The coroutines may be awaited from any executor.
class Vbds {
 public:
  Vbds(boost::asio::io_context& io, DeviceManager& devices, EventRing& events,
       const Config& config, std::unique_ptr<XenHost> host);
  ~Vbds();

  // At start, when the manager has taken up its devices.
  Task<> start();

  // Returns when the disk can be used. `still_wanted` throws when nobody waits any more.
  // Throws GuestError.
  Task<nlohmann::json> add(std::string path, std::function<Task<>()> still_wanted);
  // Returns when the end has begun. Fine for a node that is not ours.
  Task<> remove(std::string path);
  Task<nlohmann::json> list();

 private:
  struct Node;
  struct Disk;
  using DiskPtr = std::shared_ptr<Disk>;

  Task<nlohmann::json> add_here(std::string path, std::function<Task<>()> still_wanted);
  Task<DiskPtr> join_or_make(const Node& node);
  Task<> attach(DiskPtr disk, const Node& node);
  Task<> check_others(const Node& node, const DiskSpec& spec);
  Task<nlohmann::json> answer(const Disk& disk);
  Task<> start_here();
  Task<nlohmann::json> list_here();
  Task<> remove_here(std::string path);
  Task<> depart(std::string path);
  Task<> leave(DiskPtr disk, Device::Leaving how, bool keep);
  Task<> look_at_domains();
  Task<> look_at_node(std::string path);
  Task<> look_at_other(std::string path);
  Task<> until_it_runs(DiskPtr disk);
  Task<> note(DiskPtr disk);
  void changed(const std::vector<std::string>& paths);
  void gone(const std::string& device);
  void spawn(Task<> task, const std::string& what);
  DiskPtr find(const std::string& path) const;
  DiskPtr find_same(const Node& node, const std::string& asked) const;

  DeviceManager& devices_;
  EventRing& events_;
  const Config& config_;
  boost::asio::strand<boost::asio::io_context::executor_type> strand_;

  // On strand_:
  std::map<std::string, DiskPtr> disks_;  // by device
  std::set<std::string> departing_;       // paths
  bool started_ = false;
  SignalEvent changed_;

  XenThread xen_;
};

}  // namespace cowd
