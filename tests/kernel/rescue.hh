// SPDX-License-Identifier: GPL-2.0-or-later
// What a case leaves behind is taken away, so that the next one finds the machine
// as it was: held disks are resumed, a daemon that fails everything is attached to
// its devices, and all are removed.
#pragma once

#include <functional>
#include <string>

namespace dmutest::rescue {

// Every device that tests make has a name that begins with this.
inline constexpr const char* kPrefix = "dmut-";

// Until `idle` (the case's process has ended) and no device is left, at most ten seconds.
void free_devices(const std::function<bool()>& idle);

// States of the test's devices, for the report of a case that hangs.
std::string describe();

}  // namespace dmutest::rescue
