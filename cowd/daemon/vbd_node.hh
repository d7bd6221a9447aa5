// SPDX-License-Identifier: GPL-2.0-or-later
// Names that disks of domains have: of their nodes in XenStore, backend/vbd/DOMID/DEVID,
// and of the devices made for them.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>

namespace cowd {

inline constexpr const char* kVbdRoot = "backend/vbd";

// "backend/vbd/3/51712", or a path below it, cut there. Empty: something else.
std::string vbd_node(std::string_view path);

// Throws Error(EINVAL) unless it is such a node.
void check_vbd_node(const std::string& path);

// Of such a node; 0 for what is none.
unsigned domid_of(const std::string& node);

// What dm and a file name take, of what an operator called a domain.
std::string vbd_device_name(const std::string& domain, const std::string& vdev);

// "fd:3" of "253:3", as Xen's scripts write it.
std::string xen_dev(const std::string& dev);

// And back, from "fd:3".
std::optional<dev_t> dev_of(const std::string& xen);

}  // namespace cowd
