// SPDX-License-Identifier: GPL-2.0-or-later
// All attached devices: names, who may use which store, attach and detach, and what
// a restarted cowd makes of what it finds.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cowd/daemon/attach_request.hh"
#include "cowd/daemon/config.hh"
#include "cowd/daemon/device.hh"
#include "cowd/daemon/domain_devices.hh"
#include "cowd/daemon/signal_event.hh"
#include "cowd/daemon/store_removals.hh"
#include "cowd/daemon/stores.hh"
#include "cowd/daemon/transient.hh"

namespace cowd {

class Undo;

// The coroutines may be awaited from any executor; they run on the manager's strand
// and, where they work on one device, on that device's.
class DeviceManager : public DomainDevices {
 public:
  DeviceManager(boost::asio::io_context& io, const Config& config, DeviceEnvironment environment);

  Task<nlohmann::json> attach(AttachRequest request) override;
  // `device`: a name, a path below /dev/mapper, or a specification, here and below.
  Task<> detach(std::string device);
  Task<> pause(std::string device);
  Task<> resume(std::string device);
  Task<nlohmann::json> list();
  Task<nlohmann::json> info(std::string device);
  Task<nlohmann::json> map(std::string device, std::optional<uint64_t> offset,
                           std::optional<uint64_t> length);
  Task<nlohmann::json> stats(std::optional<std::string> device);

  Task<dm::Info> mapping(std::string name) override;
  Task<> leave(std::string name, Device::Leaving how) override;
  Task<> abandon(std::string name) override;
  Task<> note(std::string name, std::function<void(DeviceEntry&)> change) override;
  Task<> mark_saved(std::string name, bool saved) override;
  Task<std::vector<DeviceEntry>> entries() override;
  Task<std::optional<DeviceEntry>> entry(std::string name) override;
  Task<std::string> hindered(StoreIdentity store, bool writes) override;
  void on_gone(std::function<void(const DeviceEntry&)> tell) override;

  // Transient stores of this host and, as far as they can be seen, of others.
  Task<nlohmann::json> stores();
  Task<> delete_store(std::string uuid);

  // The devices whose store can run out of room before it is as large as it may be.
  Task<std::vector<SpaceUser>> space_users();
  // Something was done about what these wait for.
  Task<> space_added(std::vector<std::string> names);

  // At start: serves what an earlier cowd left. Returns after the first try for every
  // device, but soon: one whose backing hangs is known by then, and tried on.
  Task<> reattach_all();
  // At the end: commits all, leaves the dm devices up.
  Task<> stop_all();

 private:
  using DevicePtr = std::shared_ptr<Device>;
  using Strand = boost::asio::strand<boost::asio::io_context::executor_type>;

  Task<nlohmann::json> attach_here(AttachRequest request);
  Task<> take_name(const std::string& name, const std::set<std::string>& taken);
  Task<std::string> choose_name(const AttachRequest& request, const DiskSpec& spec);
  Task<> claim_stores(const std::string& name, const DiskSpec& spec, bool read_only);
  Task<> claim_used(const std::string& name, const DiskSpec& spec, bool read_only);
  Task<> claim_named(std::string name, Component file, bool writable);
  Task<DevicePtr> make_and_attach(AttachRequest& request, const std::string& name, DiskSpec spec,
                                  Undo& undo);
  Task<TransientStore> prepare_store(const AttachRequest& request, const std::string& name,
                                     const DiskSpec& spec, Backing& base, Undo& undo);
  Task<> format_store(const TransientStore& store, const Backing& base,
                      const FormatDescriptor& format);
  Task<std::vector<TransientStore>> scan_stores();
  Task<> clean_stores(std::set<std::string> in_use);
  Task<std::optional<DeviceEntry>> entry_here(std::string name);
  Task<std::string> hindered_here(StoreIdentity store, bool writes);
  Task<> leave_here(std::string name, Device::Leaving how);
  Task<> abandon_here(std::string name);
  Task<> note_here(std::string name, std::function<void(DeviceEntry&)> change);
  Task<> mark_saved_here(std::string name, bool saved);
  Task<nlohmann::json> stores_here();
  Task<> delete_store_here(std::string uuid);
  DeviceEntry make_entry(const AttachRequest& request, const std::string& name,
                         const DiskSpec& spec) const;
  Task<> finish(DevicePtr device);
  Task<> detach_here(std::string device);
  Task<> reattach_here();
  Task<> reattach_one(DevicePtr device, DeviceEntry entry);
  Task<> clean_at_start(DeviceEntry entry);
  Task<> clean_one(DeviceEntry entry);
  Task<> close_left(const std::string& name, const DiskSpec& spec);
  DevicePtr make_device(DeviceEntry entry);
  Task<DevicePtr> find(std::string device);
  Task<std::vector<DevicePtr>> all();

  boost::asio::io_context& io_;
  const Config& config_;
  DeviceEnvironment environment_;
  Strand strand_;

  // On strand_:
  std::map<std::string, DevicePtr> devices_;
  std::set<std::string> attaching_;  // names that are taken already
  // Devices that are gone: Device::unclosed().
  std::map<std::string, DeviceEntry> unclosed_;
  Stores stores_;
  TransientStores transient_;          // any thread
  StoreRemovals removals_;
  std::set<std::string> store_uuids_;  // of the transient stores that devices have
  bool taken_up_ = false;              // what an earlier cowd left of devices
  bool stores_cleaned_ = false;        // and of stores
  SignalEvent changed_;
  bool stopping_ = false;

  std::mutex tell_mutex_;
  std::function<void(const DeviceEntry&)> tell_gone_;
};

}  // namespace cowd
