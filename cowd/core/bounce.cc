// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/bounce.hh"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace cowd {

namespace {

constexpr size_t kAlignment = 4096;

struct Shelf {
  explicit Shelf(size_t most) : keep(most) { free.reserve(most); }
  const size_t keep;
  std::mutex mutex;
  std::vector<std::byte*> free;
};

// Never destroyed: a detached thread may give a buffer back while the process ends.
Shelf& shelf(bool large) {
  static Shelf& small_shelf = *new Shelf(256);
  static Shelf& large_shelf = *new Shelf(32);
  return large ? large_shelf : small_shelf;
}

}  // namespace

void BounceRelease::operator()(std::byte* buffer) const {
  Shelf& place = shelf(large);
  std::lock_guard lock(place.mutex);
  if (place.free.size() < place.keep)
    place.free.push_back(buffer);
  else
    std::free(buffer);
}

BounceBuffer take_bounce(size_t bytes) {
  const bool large = bytes > kBounceSmall;
  Shelf& place = shelf(large);
  {
    std::lock_guard lock(place.mutex);
    if (!place.free.empty()) {
      std::byte* buffer = place.free.back();
      place.free.pop_back();
      return BounceBuffer(buffer, BounceRelease{large});
    }
  }
  void* fresh = std::aligned_alloc(kAlignment, large ? kBounceLarge : kBounceSmall);
  if (!fresh) throw std::bad_alloc();
  return BounceBuffer(static_cast<std::byte*>(fresh), BounceRelease{large});
}

}  // namespace cowd
