// SPDX-License-Identifier: GPL-2.0-or-later
// What cowd needs of Xen, and the contract with the shared object that has it:
// <plugin dir>/xen/<major>.<minor>.so, built against the libraries of that Xen and loaded
// where that Xen runs. Everything that decides something is in cowd itself (vbds.hh).
//
// Calls block, for as long as xenstored likes: one thread of its own makes them
// (xen_thread.hh), no two at a time. All throw Error.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace cowd {

struct XenDomain {
  uint32_t id = 0;
  std::string uuid;  // lower-case, with hyphens
  bool dying = false;
  bool shut_down = false;
  unsigned reason = 0;  // of shut_down: kSuspended...
  bool has_run = false;  // has had a processor since it was made

  static constexpr unsigned kPowerOff = 0, kReboot = 1, kSuspend = 2, kCrash = 3;
};

class XenHost {
 public:
  virtual ~XenHost() = default;

  // Nothing: there is no such node.
  virtual std::optional<std::string> read(const std::string& path) = 0;
  // The names below a node; none if it is not there.
  virtual std::vector<std::string> list(const std::string& path) = 0;

  // From here on, changes of `path` and below come from changes(). Also "@releaseDomain".
  virtual void watch(const std::string& path) = 0;
  // Readable when changes() has something.
  virtual int fd() const = 0;
  // The paths that were touched; never blocks.
  virtual std::vector<std::string> changes() = 0;

  virtual std::vector<XenDomain> domains() = 0;
};

inline constexpr uint32_t kXenAbi = 1;

struct XenDescriptor {
  uint32_t abi = kXenAbi;
  uint32_t size = sizeof(XenDescriptor);
  std::unique_ptr<XenHost> (*open)() = nullptr;
};

// Whether this is a domain that serves disks to others (domain 0).
bool xen_is_here();

// The shared object for the Xen that runs, out of the first of `directories` that has it.
// Throws Error: ENOENT (none for this version), ENOEXEC.
std::unique_ptr<XenHost> open_xen(const std::vector<std::string>& directories);

}  // namespace cowd

extern "C" {
// The one symbol such an object exports.
[[gnu::visibility("default")]] extern const cowd::XenDescriptor cowd_xen;
}
