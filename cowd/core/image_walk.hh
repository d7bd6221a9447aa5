// SPDX-License-Identifier: GPL-2.0-or-later
// The map of an image from its beginning to its end, in bounded memory: it is asked for windows,
// which become larger as long as little is in them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cowd/core/image_io.hh"
#include "formats/plugin.hh"

namespace cowd {

class MapWalk {
 public:
  explicit MapWalk(Image& image) : image_(image) {}

  // What is at `sector`, from there on and up to `end` at most. Behind the end of the image
  // there are zeroes that nobody has. `sector` is never less than it was before.
  Task<MapEntry> at(uint64_t sector, uint64_t end);

 private:
  static constexpr uint64_t kFirst = (64 << 20) / 512;
  static constexpr uint64_t kMost = (uint64_t{1} << 36) / 512;
  static constexpr size_t kFew = 1024;  // entries

  Image& image_;
  std::vector<MapEntry> entries_;
  size_t next_ = 0;
  uint64_t window_ = kFirst;
};

// As ImageIo::read(), with zeroes behind the end of the image.
Task<> read_or_zeroes(ImageIo& image, Range range, std::span<std::byte> out);

// Whether all bytes are 0.
bool is_zero(std::span<const std::byte> bytes);

// So much of an image is in memory at once, in sectors.
inline constexpr uint64_t kCopyPiece = (2 << 20) / 512;

}  // namespace cowd
