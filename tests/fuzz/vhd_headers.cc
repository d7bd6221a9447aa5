// SPDX-License-Identifier: GPL-2.0-or-later
// The footer of a VHD, 512 bytes, and the header behind it, 1024. What is accepted is written
// back the same.
#include <algorithm>

#include "cowd/core/error.hh"
#include "formats/vhd/footer.hh"
#include "tests/fuzz/checksums.hh"
#include "tests/fuzz/fail.hh"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cowd;
  fuzz::MemoryDisk disk("image", 2048, 512);
  disk.poke(0, std::as_bytes(std::span(data, std::min<size_t>(size, 1536))));
  fuzz::put_checksums_right("vhd", disk);
  std::vector<std::byte> footer(vhd::kFooterBytes), header(vhd::kHeaderBytes);
  disk.peek(0, footer);
  disk.peek(512, header);
  if (vhd::problem_with_footer(footer).empty()) {
    const vhd::Footer found = vhd::decode_footer(footer);
    fuzz::require(std::ranges::equal(found.raw, footer), "a footer is not kept as it was");
  }
  if (vhd::problem_with_header(header).empty()) vhd::decode_header(header);
  vhd::utf8(header, true);
  vhd::utf8(header, false);
  return 0;
}
