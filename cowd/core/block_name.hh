// SPDX-License-Identifier: GPL-2.0-or-later
// What the kernel calls a block device.
#pragma once

#include <sys/sysmacros.h>
#include <sys/types.h>

#include <filesystem>
#include <string>

namespace cowd {

// "sdc", "loop3", "nbd0p1"; empty: there is none (any more).
inline std::string block_name(dev_t device) {
  std::error_code gone;
  return std::filesystem::canonical("/sys/dev/block/" + std::to_string(major(device)) + ":" +
                                        std::to_string(minor(device)),
                                    gone)
      .filename();
}

}  // namespace cowd
