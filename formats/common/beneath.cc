// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/common/beneath.hh"

#include <algorithm>
#include <utility>

#include "formats/common/any_offset.hh"
#include "formats/common/bytes.hh"

namespace cowd {
namespace {

constexpr uint64_t kSector = 512;

Range common(Range a, Range b) {
  const uint64_t sector = std::max(a.sector, b.sector);
  const uint64_t end = std::min(a.end(), b.end());
  return {sector, end > sector ? end - sector : 0};
}

Extent zeroes(Range range) {
  Extent extent;
  extent.range = range;
  extent.read = Side::zeroes();
  return extent;
}

Extent cut(const Extent& whole, Range part, uint32_t first_dest) {
  Extent extent;
  extent.range = part;
  extent.read = whole.read;
  if (extent.read.kind == Side::Kind::disk) {
    extent.read.dest += first_dest;
    extent.read.sector += part.sector - whole.range.sector;
  }
  return extent;
}

Data cut(const Data& whole, Range part) {
  const auto first =
      whole.bytes.begin() + static_cast<ptrdiff_t>((part.sector - whole.range.sector) * kSector);
  return {part, {first, first + static_cast<ptrdiff_t>(part.len * kSector)}};
}

}  // namespace

Range range_of(const Answer& answer) {
  return std::visit([](const auto& each) { return each.range; }, answer);
}

Beneath::Beneath(std::unique_ptr<Image> image, uint32_t first_dest, uint32_t block_size)
    : image_(std::move(image)),
      first_dest_(first_dest),
      block_size_(block_size),
      own_(image_->destinations()) {
  for (const Destination& each : own_) block_size_ = std::max(block_size_, each.disk->block_size());
}

std::vector<Destination> Beneath::destinations() const {
  std::vector<Destination> all = own_;
  for (Destination& each : all) each.writable = false;
  return all;
}

// The part of an extent that the kernel can map; of what is no extent, or lies across blocks,
// nothing.
Range Beneath::whole_blocks(const Answer& answer) const {
  const uint64_t block = block_size_ / kSector;
  const auto* extent = std::get_if<Extent>(&answer);
  if (!extent) return {};
  const Range range = extent->range;
  const uint64_t first = round_up(range.sector, block), end = round_down(range.end(), block);
  const bool fits = extent->read.kind != Side::Kind::disk ||
                    (extent->read.sector + (first - range.sector)) % block == 0;
  if (!fits || end <= first) return {};
  return {first, end - first};
}

Task<std::vector<Answer>> Beneath::read(Range range) {
  std::vector<Answer> found = co_await read_unaligned(range);
  if (block_size_ == kSector) co_return found;
  std::vector<Answer> answers;
  uint64_t at = range.sector;
  uint64_t next = range_of(found.back()).end();  // where the first extent is behind a gap
  for (const Answer& answer : found) {
    const Range part = whole_blocks(answer);
    if (part.len == 0) continue;
    next = part.sector;
    if (next != at) break;
    answers.emplace_back(cut(std::get<Extent>(answer), part, 0));
    at = next = part.end();
  }
  if (at != range.sector) co_return answers;
  // Up to where the next block begins that can be mapped, or to the end of what was asked for.
  const uint64_t block = block_size_ / kSector;
  const uint64_t stop = std::min(round_up(std::max(next, at + 1), block), range.end());
  Data data;
  data.range = {at, std::min(stop - at, kMaxBytes / kSector)};
  data.bytes.resize(data.range.len * kSector);
  co_await read_bytes(data.range, data.bytes);
  answers.emplace_back(std::move(data));
  co_return answers;
}

Task<std::vector<Answer>> Beneath::read_unaligned(Range range) {
  std::vector<Answer> answers;
  while (range.len && answers.size() < kMaxAnswers) {
    std::vector<Answer> some = co_await read_once(range);
    for (Answer& answer : some) {
      const uint64_t end = range_of(answer).end();
      answers.push_back(std::move(answer));
      range.len = range.end() - end;
      range.sector = end;
    }
  }
  co_return answers;
}

// What the image says, as far as it says it without a gap; never nothing.
Task<std::vector<Answer>> Beneath::read_once(Range range) {
  std::vector<Answer> answers;
  if (range.sector >= sectors()) {
    answers.emplace_back(zeroes(range));
    co_return answers;
  }
  range = common(range, {0, sectors()});
  uint64_t at = range.sector;
  const std::vector<Answer> found = co_await image_->resolve(range, Access::read);
  for (const Answer& answer : found) {
    const Range part = common(range_of(answer), {at, range.end() - at});
    if (part.len == 0 || part.sector != at) continue;
    if (const auto* extent = std::get_if<Extent>(&answer); extent && !extent->granule)
      answers.emplace_back(cut(*extent, part, first_dest_));
    else if (const auto* data = std::get_if<Data>(&answer))
      answers.emplace_back(cut(*data, part));
    else
      continue;
    at = part.end();
  }
  if (answers.empty())
    throw Error(EIO, "The image beneath does not say where its sector " +
                         std::to_string(range.sector) + " is: a defect of its format's plugin.");
  co_return answers;
}

Task<> Beneath::read_bytes(Range range, std::span<std::byte> out) {
  const uint64_t origin = range.sector;
  const auto place = [&](Range part) {
    return out.subspan((part.sector - origin) * kSector, part.len * kSector);
  };
  while (range.len) {
    const std::vector<Answer> answers = co_await read_unaligned(range);
    for (const Answer& answer : answers) {
      const Range part = range_of(answer);
      const std::span<std::byte> to = place(part);
      if (const auto* data = std::get_if<Data>(&answer)) {
        std::ranges::copy(data->bytes, to.begin());
      } else if (const Side side = std::get<Extent>(answer).read; side.kind == Side::Kind::disk) {
        Disk& disk = *own_.at(side.dest - first_dest_).disk;
        co_await read_any(disk, side.sector * kSector, to);
      } else {
        std::ranges::fill(to, std::byte{0});
      }
      range.len = range.end() - part.end();
      range.sector = part.end();
    }
  }
}

Task<std::vector<MapEntry>> Beneath::map(Range range) {
  std::vector<MapEntry> entries;
  const Range inside = common(range, {0, sectors()});
  if (inside.len) entries = co_await image_->map(inside);
  for (MapEntry& entry : entries) ++entry.depth;
  const Range behind = common(range, {sectors(), UINT64_MAX - sectors()});
  if (behind.len) {
    MapEntry entry;
    entry.range = behind;  // of the image on it, which is depth 0 to qemu-img map too
    entry.present = entry.data = false;
    entry.zero = true;
    entries.push_back(entry);
  }
  co_return entries;
}

}  // namespace cowd
