// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/image_rebase.hh"

#include <algorithm>
#include <optional>

#include "cowd/core/image_walk.hh"
#include "formats/common/bytes.hh"

namespace cowd {
namespace {

constexpr uint64_t kSector = 512;
constexpr uint64_t kLeastUnit = 4096;  // bytes

class CopyUp {
 public:
  CopyUp(Image& top, Image* next) : top_(top) {
    if (next) next_.emplace(*next);
    unit_ = std::max<uint64_t>(top.discard_granularity(), kLeastUnit) / kSector;
  }

  Task<> compare(Range range) {
    while (range.len) {
      const uint64_t most = std::max(kCopyPiece / unit_, uint64_t{1}) * unit_;
      const uint64_t stop = round_down(range.sector, unit_) + most;
      const Range piece{range.sector, std::min(range.end(), stop) - range.sector};
      now_.resize(piece.len * kSector);
      then_.assign(now_.size(), std::byte{0});
      co_await top_.read(piece, now_);
      if (next_) co_await read_or_zeroes(*next_, piece, then_);
      co_await write_what_differs(piece);
      range = {piece.end(), range.len - piece.len};
    }
  }

  Task<> finish() { co_await top_.commit(); }
  uint64_t written() const { return written_; }

 private:
  bool differs(Range piece, Range part) const {
    const auto at = static_cast<ptrdiff_t>((part.sector - piece.sector) * kSector);
    const auto bytes = static_cast<ptrdiff_t>(part.len * kSector);
    return !std::equal(now_.begin() + at, now_.begin() + at + bytes, then_.begin() + at);
  }

  // By the unit that the image gives space in: a part of one would be copied up anyway.
  Task<> write_what_differs(Range piece) {
    Range run{piece.sector, 0};
    for (uint64_t at = piece.sector; at < piece.end();) {
      const uint64_t end = std::min(round_down(at, unit_) + unit_, piece.end());
      if (differs(piece, {at, end - at})) {
        if (run.len == 0) run.sector = at;
        run.len = end - run.sector;
      } else if (run.len) {
        co_await write(piece, run);
        run.len = 0;
      }
      at = end;
    }
    if (run.len) co_await write(piece, run);
  }

  Task<> write(Range piece, Range run) {
    const auto bytes = std::span<const std::byte>(now_).subspan(
        (run.sector - piece.sector) * kSector, run.len * kSector);
    written_ += bytes.size();
    if (is_zero(bytes))
      co_await top_.zero(run);
    else
      co_await top_.write(run, bytes);
  }

  ImageIo top_;
  std::optional<ImageIo> next_;
  uint64_t unit_;
  Buffer now_, then_;
  uint64_t written_ = 0;
};

}  // namespace

Task<uint64_t> copy_up(Image& top, Image* next, Progress progress) {
  CopyUp work(top, next);
  MapWalk walk(top);
  std::optional<MapWalk> in_next;
  if (next) in_next.emplace(*next);
  const uint64_t end = top.sectors();
  for (uint64_t at = 0; at < end;) {
    if (progress) progress(at, end);
    const MapEntry own = co_await walk.at(at, end);
    Range range = own.range;
    const bool beneath = own.depth > 0 || !own.present;
    if (beneath) {
      bool zero = true;
      if (in_next) {
        const MapEntry other = co_await in_next->at(at, end);
        range.len = std::min(range.len, other.range.len);
        zero = other.zero;
      }
      if (!own.zero || !zero) co_await work.compare(range);
    }
    at = range.end();
  }
  co_await work.finish();
  if (progress) progress(end, end);
  co_return work.written();
}

}  // namespace cowd
