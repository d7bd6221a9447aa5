// SPDX-License-Identifier: GPL-2.0-or-later
// For those who have the file of a named disk before them already.
#pragma once

#include <string>
#include <toml.hpp>

#include "cowd/core/disk_options.hh"

namespace cowd {

// Throws Error(EINVAL) that names what `table` should not hold.
DiskOptions check_disk_options(const toml::value& table, const std::string& file);

}  // namespace cowd
