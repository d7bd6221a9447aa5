// SPDX-License-Identifier: GPL-2.0-or-later
// All attached devices: names, who may use which store, attach and detach, and what
// a restarted cowd makes of what it finds.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cowd/daemon/config.hh"
#include "cowd/daemon/device.hh"
#include "cowd/daemon/stores.hh"

namespace cowd {

struct AttachRequest {
  std::string spec;
  std::string name;  // empty: made from the specification
  std::optional<Durability> durability;
  bool read_only = false;
  std::optional<bool> queue_if_no_daemon;
  std::optional<unsigned> no_daemon_seconds;
  std::optional<uint64_t> max_extents;
};

// The coroutines may be awaited from any executor; they run on the manager's strand
// and, where they work on one device, on that device's.
class DeviceManager {
 public:
  DeviceManager(boost::asio::io_context& io, const Config& config, DeviceEnvironment environment);

  Task<nlohmann::json> attach(AttachRequest request);
  // `device`: a name, a path below /dev/mapper, or a specification, here and below.
  Task<> detach(std::string device);
  Task<> pause(std::string device);
  Task<> resume(std::string device);
  Task<nlohmann::json> list();
  Task<nlohmann::json> info(std::string device);
  Task<nlohmann::json> map(std::string device, std::optional<uint64_t> offset,
                           std::optional<uint64_t> length);
  Task<nlohmann::json> stats(std::optional<std::string> device);

  // At start: serves what an earlier cowd left. Returns after the first try for
  // every device.
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
  DeviceEntry make_entry(const AttachRequest& request, const std::string& name,
                         const DiskSpec& spec) const;
  Task<> detach_here(std::string device);
  Task<> reattach_here();
  Task<> reattach_one(DeviceEntry entry);
  Task<> clean_one(DeviceEntry entry);
  DevicePtr make_device(DeviceEntry entry);
  Task<DevicePtr> find(std::string device);
  Task<std::vector<DevicePtr>> all();
  void forget(const std::string& name);

  boost::asio::io_context& io_;
  const Config& config_;
  DeviceEnvironment environment_;
  Strand strand_;

  // On strand_:
  std::map<std::string, DevicePtr> devices_;
  std::set<std::string> attaching_;  // names that are taken already
  Stores stores_;
  bool stopping_ = false;
};

}  // namespace cowd
