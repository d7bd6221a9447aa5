// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/fuzz/checksums.hh"

#include <numeric>
#include <vector>

#include "formats/common/bytes.hh"
#include "formats/common/crc32c.hh"

namespace cowd::fuzz {
namespace {

// docs/dscow.md: CRC-32C of the block with the checksum itself as 0.
void put_dscow(MemoryDisk& disk, uint64_t at) {
  std::vector<std::byte> block(4096);
  disk.peek(at, block);
  store_le<uint32_t>(block, 8, 0);
  store_le<uint32_t>(block, 8, crc32c(block));
  disk.poke(at, block);
}

// The specification: the complement of the sum of all bytes, the checksum itself as 0.
uint64_t put_vhd(MemoryDisk& disk, uint64_t at, size_t bytes, size_t checksum_at) {
  std::vector<std::byte> block(bytes);
  disk.peek(at, block);
  store_be<uint32_t>(block, checksum_at, 0);
  const uint32_t sum = std::accumulate(block.begin(), block.end(), 0u, [](uint32_t all, auto byte) {
    return all + std::to_integer<uint32_t>(byte);
  });
  store_be<uint32_t>(block, checksum_at, ~sum);
  disk.poke(at, block);
  return load_be<uint64_t>(block, 16);  // of a footer: where the header is
}

}  // namespace

void put_checksums_right(std::string_view format, MemoryDisk& disk) {
  constexpr size_t kFooter = 512, kHeader = 1024;
  if (format == "dscow")
    for (const uint64_t at : {0, 4096}) put_dscow(disk, at);
  if (format != "vhd" || disk.size() < kFooter) return;
  for (const uint64_t at : {uint64_t{0}, disk.size() - kFooter})
    put_vhd(disk, put_vhd(disk, at, kFooter, 64), kHeader, 36);
}

}  // namespace cowd::fuzz
