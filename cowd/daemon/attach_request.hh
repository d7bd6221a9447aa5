// SPDX-License-Identifier: GPL-2.0-or-later
// What is asked for when a device is attached.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "cowd/daemon/device_entry.hh"

namespace cowd {

struct AttachRequest {
  std::string spec;
  std::string name;  // empty: made from the specification
  std::optional<Durability> durability;
  bool read_only = false;
  std::optional<bool> queue_if_no_daemon;
  std::optional<unsigned> no_daemon_seconds;
  std::optional<uint64_t> max_extents;
  DomainNote domain;  // whose disk it will be; nobody's with an empty vm_uuid
  // Any thread. Once it says no, all is undone as soon as what the disk lies on lets it.
  std::function<bool()> wanted;
};

}  // namespace cowd
