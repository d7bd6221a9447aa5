// SPDX-License-Identifier: GPL-2.0-or-later
// The image beneath an image: a backing file, a parent. Only read; where it ends, what lies
// on it goes on with zeroes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "formats/plugin.hh"

namespace cowd {

class Beneath {
 public:
  // `first_dest`: where its destinations come in those of the image on it. `block_size`: of
  // what that image lies on.
  Beneath(std::unique_ptr<Image> image, uint32_t first_dest, uint32_t block_size = 512);

  uint64_t sectors() const { return image_->sectors(); }
  // To be appended to those of the image on it; none is writable.
  std::vector<Destination> destinations() const;
  // Where reads of `range` go: plain extents without a write side, and Data, in order, from
  // range.sector on and without gaps; for the whole of it, or for kMaxAnswers' worth, or up to
  // bytes. `range` begins at a block of the device.
  Task<std::vector<Answer>> read(Range range);
  // The largest of what it and the image on it lie on, which is what the kernel makes of them:
  // extents begin and end at such blocks. Where the image beneath does not (it ends within one,
  // or changes from one place to another), the block is given as bytes.
  uint32_t block_size() const { return block_size_; }
  // The bytes themselves, for what cannot be mapped. `out` has range.len sectors.
  Task<> read_bytes(Range range, std::span<std::byte> out);
  // The whole range, a depth deeper than the image beneath sees it.
  Task<std::vector<MapEntry>> map(Range range);
  Task<> close() { return image_->close(); }

  static constexpr size_t kMaxAnswers = 64;
  static constexpr uint64_t kMaxBytes = 1 << 20;  // in one answer, where blocks do not fit

 private:
  Task<std::vector<Answer>> read_unaligned(Range range);
  Task<std::vector<Answer>> read_once(Range range);
  Range whole_blocks(const Answer& answer) const;

  std::unique_ptr<Image> image_;
  uint32_t first_dest_;
  uint32_t block_size_;
  std::vector<Destination> own_;  // of the image
};

Range range_of(const Answer& answer);

}  // namespace cowd
