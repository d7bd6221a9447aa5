// SPDX-License-Identifier: GPL-2.0-or-later
// What the disks of domains (vbds.hh) need of the devices: the DeviceManager, or what a
// test puts in its place.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cowd/daemon/attach_request.hh"
#include "cowd/daemon/device.hh"
#include "cowd/daemon/device_entry.hh"
#include "cowd/daemon/dm.hh"
#include "cowd/daemon/stores.hh"

namespace cowd {

// The coroutines may be awaited from any executor; all throw Error.
class DomainDevices {
 public:
  virtual ~DomainDevices() = default;

  // Gives the device object of docs/control-protocol.md.
  virtual Task<nlohmann::json> attach(AttachRequest request) = 0;
  // As the kernel has it.
  virtual Task<dm::Info> mapping(std::string name) = 0;
  // Begins a detach that ends at the last close (Device::leave). A device that is gone
  // already is fine.
  virtual Task<> leave(std::string name, Device::Leaving how) = 0;
  // Device::abandon. A device that is gone already is fine.
  virtual Task<> abandon(std::string name) = 0;
  // Durable when it returns. Likewise.
  virtual Task<> note(std::string name, std::function<void(DeviceEntry&)> change) = 0;
  // The disk of a saved domain has run again (false), or is to be kept (true). Of calls for
  // one device only one at a time.
  virtual Task<> mark_saved(std::string name, bool saved) = 0;
  virtual Task<std::vector<DeviceEntry>> entries() = 0;
  virtual Task<std::optional<DeviceEntry>> entry(std::string name) = 0;
  // Stores::hindered.
  virtual Task<std::string> hindered(StoreIdentity store, bool writes) = 0;
  // Called on an unknown strand when a device, and what was made for it, is gone. It must be
  // short and not call back. After on_gone({}) it is called no more.
  virtual void on_gone(std::function<void(const DeviceEntry&)> tell) = 0;
};

}  // namespace cowd
