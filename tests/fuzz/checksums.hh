// SPDX-License-Identifier: GPL-2.0-or-later
// Checksums, which a fuzzer would never guess.
#pragma once

#include <string_view>

#include "tests/fuzz/memory_disk.hh"

namespace cowd::fuzz {

// Those of the headers of an image of that format; nothing where it has none.
void put_checksums_right(std::string_view format, MemoryDisk& disk);

}  // namespace cowd::fuzz
