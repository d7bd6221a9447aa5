// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/common/any_offset.hh"

#include <algorithm>

#include "formats/common/bytes.hh"

namespace cowd {
namespace {

constexpr size_t kPiece = 1 << 20;

}  // namespace

Task<> read_any(Disk& disk, uint64_t offset, std::span<std::byte> out) {
  const uint64_t block = disk.block_size();
  const uint64_t end = disk.size();
  while (!out.empty() && offset < end) {
    const uint64_t first = round_down(offset, block);
    const uint64_t wanted = std::min<uint64_t>(out.size(), kPiece);
    const uint64_t last = std::min(round_up(offset + wanted, block), end);
    const size_t count = std::min(wanted, last - offset);
    if (first == offset && last - first == count) {
      co_await disk.read_at(first, out.first(count));
    } else {
      Buffer blocks(last - first);
      co_await disk.read_at(first, blocks);
      std::copy_n(blocks.begin() + static_cast<ptrdiff_t>(offset - first), count, out.begin());
    }
    offset += count;
    out = out.subspan(count);
  }
  std::ranges::fill(out, std::byte{0});
}

Task<> write_any(Disk& disk, uint64_t offset, std::span<const std::byte> in) {
  const uint64_t block = disk.block_size();
  if (in.empty()) co_return;
  const uint64_t first = round_down(offset, block);
  const uint64_t last = round_up(offset + in.size(), block);
  if (first == offset && last - first == in.size()) {
    co_await disk.write_at(first, in);
    co_return;
  }
  Buffer blocks(last - first);
  const std::span<std::byte> all(blocks);
  if (first < offset) co_await disk.read_at(first, all.first(block));
  if (last > offset + in.size() && (last - first > block || first == offset))
    co_await disk.read_at(last - block, all.last(block));
  std::ranges::copy(in, blocks.begin() + static_cast<ptrdiff_t>(offset - first));
  co_await disk.write_at(first, blocks);
}

}  // namespace cowd
