// SPDX-License-Identifier: GPL-2.0-or-later
// How domains ended that no cowd saw end: <run dir>/ends/DOMID, one line "UUID REASON", by
// xen-hotplug/block-dmu when cowd was not to be told that a disk is taken away. Only of a domain
// that had shut down, for REASON (XenDomain::kSuspend...): so that the store of one that was saved
// is not taken for that of one that was destroyed.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "cowd/daemon/xen_host.hh"

namespace cowd {

// As if they were dying still. What is no such note is left out.
std::vector<XenDomain> left_ends(const std::string& run_dir);

// All but those of these domains.
void forget_left_ends(const std::string& run_dir, const std::set<unsigned>& but);

}  // namespace cowd
