// SPDX-License-Identifier: GPL-2.0-or-later
// The header of a dscow store: what is accepted means the same when it is written again.
#include <algorithm>
#include <vector>

#include "formats/dscow/header.hh"
#include "tests/fuzz/checksums.hh"
#include "tests/fuzz/fail.hh"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cowd;
  fuzz::MemoryDisk disk("store", 2 * dscow::kBlock, 512);
  disk.poke(0, std::as_bytes(std::span(data, std::min<size_t>(size, dscow::kBlock))));
  fuzz::put_checksums_right("dscow", disk);
  std::vector<std::byte> block(dscow::kBlock);
  disk.peek(0, block);
  const dscow::Decoded found = dscow::decode(block);
  // Of another version nothing is known, and whoever asked refuses it.
  if (!found.problem.empty() || found.version != dscow::kVersion) return 0;
  dscow::encode(found.header, block);
  const dscow::Decoded again = dscow::decode(block);
  fuzz::require(again.problem.empty(), "a header that is written again: " + again.problem);
  fuzz::require(again.header == found.header, "a header that is written again is another");
  return 0;
}
