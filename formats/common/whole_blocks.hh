// SPDX-License-Identifier: GPL-2.0-or-later
// A device has the largest logical block of the disks that it lies on, and dm makes none that
// ends within one.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <string>

#include "cowd/core/error.hh"
#include "formats/plugin.hh"

namespace cowd {

inline void require_whole_blocks(const Image& image) {
  const Disk* largest = nullptr;
  for (const Destination& each : image.destinations())
    if (!largest || each.disk->block_size() > largest->block_size()) largest = each.disk;
  if (!largest || image.sectors() * 512 % largest->block_size() == 0) return;
  throw Error(EINVAL, "The image has " + std::to_string(image.sectors()) +
                          " sectors, which is no whole number of the blocks of " +
                          std::to_string(largest->block_size()) + " bytes of " + largest->name() +
                          ", and the kernel makes no such device. Put it on a disk with blocks of "
                          "512 bytes (a file will do), or make it longer (cowctl resize).");
}

}  // namespace cowd
