// SPDX-License-Identifier: GPL-2.0-or-later
// Who this host is, for the owner field of images.
#pragma once

#include <string>

namespace cowd {

// /etc/machine-id; Error(ENOENT) with the way to make one.
std::string host_id();
// /proc/sys/kernel/random/boot_id.
std::string boot_id();

// A new one. Error(EIO) without /proc.
std::string random_uuid();

}  // namespace cowd
