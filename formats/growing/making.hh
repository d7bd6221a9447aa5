// SPDX-License-Identifier: GPL-2.0-or-later
// What create of the growing formats has in common.
#pragma once

#include <cstdint>
#include <string>

#include "formats/plugin.hh"

namespace cowd::growing {

// Takes size= out of the options; the disk's size in bytes, a multiple of 512 and not 0.
uint64_t wanted_size(CreateRequest& request);

// Refuses a top that holds something, unless forced, and one that cannot be written to; makes a
// file empty, and what a device holds unrecognisable. `what`: "a VHD image".
Task<> clear_top(const CreateRequest& request, const std::string& what);

// Makes the top `bytes` long, if it is a file; throws ENOSPC if a device is shorter.
Task<> make_room(Disk& top, uint64_t bytes);

Task<> write_zeroes(Disk& disk, uint64_t offset, uint64_t length);

}  // namespace cowd::growing
