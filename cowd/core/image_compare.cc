// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/image_compare.hh"

#include <algorithm>
#include <cstring>
#include <optional>

#include "cowd/core/image_walk.hh"
#include "formats/common/bytes.hh"

namespace cowd {
namespace {

constexpr uint64_t kSector = 512;

bool same_status(const MapEntry& a, const MapEntry& b) {
  return a.present == b.present && a.zero == b.zero && a.data == b.data;
}

class Comparer {
 public:
  Comparer(Image& a, Image& b) : a_(a), b_(b) {}

  // The first sector in `range` that differs.
  Task<std::optional<uint64_t>> first_difference(Range range) {
    while (range.len) {
      const Range piece{range.sector, std::min(range.len, kCopyPiece)};
      one_.resize(piece.len * kSector);
      other_.resize(piece.len * kSector);
      co_await read_or_zeroes(a_, piece, one_);
      co_await read_or_zeroes(b_, piece, other_);
      if (one_ != other_) co_return piece.sector + sector_of_difference();
      range = {piece.end(), range.len - piece.len};
    }
    co_return std::nullopt;
  }

 private:
  uint64_t sector_of_difference() const {
    uint64_t at = 0;
    while (!std::memcmp(one_.data() + at * kSector, other_.data() + at * kSector, kSector)) at++;
    return at;
  }

  ImageIo a_, b_;
  Buffer one_, other_;
};

}  // namespace

Task<Difference> compare_images(Image& a, Image& b, bool strict, Progress progress) {
  using Kind = Difference::Kind;
  if (strict && a.sectors() != b.sectors()) co_return Difference{Kind::size, 0};
  Comparer comparer(a, b);
  MapWalk in_a(a), in_b(b);
  const uint64_t end = std::max(a.sectors(), b.sectors());
  for (uint64_t at = 0; at < end;) {
    if (progress) progress(at, end);
    const MapEntry one = co_await in_a.at(at, end);
    const MapEntry other = co_await in_b.at(at, end);
    const Range range{at, std::min(one.range.len, other.range.len)};
    if (strict && !same_status(one, other)) co_return Difference{Kind::status, at * kSector};
    if (!one.zero || !other.zero) {
      const std::optional<uint64_t> found = co_await comparer.first_difference(range);
      if (found) co_return Difference{Kind::content, *found * kSector};
    }
    at = range.end();
  }
  if (progress) progress(end, end);
  co_return Difference{};
}

}  // namespace cowd
