// SPDX-License-Identifier: GPL-2.0-or-later
// Aligned buffers for direct I/O. A process keeps a bounded number of free ones; how
// many are in use is bounded by who uses them (BlockDisk).
#pragma once

#include <cstddef>
#include <memory>

namespace cowd {

inline constexpr size_t kBounceSmall = 4096;
inline constexpr size_t kBounceLarge = 128 * 1024;

struct BounceRelease {
  bool large = false;
  void operator()(std::byte* buffer) const;
};
using BounceBuffer = std::unique_ptr<std::byte, BounceRelease>;

// Of kBounceSmall or kBounceLarge bytes, whichever `bytes` needs; aligned to 4096;
// contents undefined. Thread safe. Throws std::bad_alloc.
BounceBuffer take_bounce(size_t bytes);

}  // namespace cowd
