// SPDX-License-Identifier: GPL-2.0-or-later
// Bytes of an open image without a kernel, for tools: does with its answers what the kernel does
// with them (dm-userspace.h), one operation at a time and without keeping any of them.
//
// A first write copies what it does not cover, then writes, then tells of the promotion at once.
// So nothing is ever promoted that the image does not know, and invalidate() has nothing to do.
// Memory of the image: a commit is made by itself before more than kMostUncommitted granules are
// promoted and not durable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "formats/plugin.hh"

namespace cowd {

class ImageIo {
 public:
  // The image outlives this, and nobody else uses it meanwhile.
  explicit ImageIo(Image& image) : image_(image), destinations_(image.destinations()) {}

  Image& image() { return image_; }
  uint64_t sectors() const { return image_.sectors(); }
  // `out` and `in` have range.len sectors. Throws what the image or its disks throw, and EIO for
  // an answer that the kernel would refuse.
  Task<> read(Range range, std::span<std::byte> out);
  Task<> write(Range range, std::span<const std::byte> in);
  // Without space for it, where the format can.
  Task<> zero(Range range);
  // All that was written is durable when it returns.
  Task<> commit();

  // For OpenRequest::invalidate of an image that is used through this.
  static Task<> invalidate(Range) { co_return; }

  static constexpr uint64_t kMostUncommitted = 4096;

 private:
  // The part of an overlay that an operation begins with: granules in the same state.
  struct Part {
    Range range;
    bool promoted = false;
  };

  Task<Extent> extent_for(Range range, Access access);
  Task<Part> part_of(const Extent& overlay, Range range);
  Task<uint64_t> read_some(Range range, std::span<std::byte> out);
  Task<uint64_t> write_some(Range range, std::span<const std::byte> in);
  Task<> promote(const Extent& overlay, Range range, std::span<const std::byte> in);
  Task<> copy(const Extent& overlay, Range range);
  Task<> get(const Extent& extent, const Side& side, Range range, std::span<std::byte> out);
  Task<> put(const Extent& extent, Range range, std::span<const std::byte> in);
  Task<> tell(const Extent& extent, Range range);
  Disk& disk(uint32_t dest, bool to_write) const;
  Error wrong(const char* what, Range range) const;

  Image& image_;
  const std::vector<Destination> destinations_;
  std::vector<Answer> answers_;  // the last ones
  uint64_t seq_ = 0;
  uint64_t uncommitted_ = 0;  // granules
};

}  // namespace cowd
