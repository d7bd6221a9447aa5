// SPDX-License-Identifier: GPL-2.0-or-later
// The header of a qcow2 image with its extensions: the input is the beginning of a file of 1 GiB.
// What is accepted means the same when it is written again.
#include "cowd/core/error.hh"
#include "formats/qcow2/layout.hh"
#include "tests/fuzz/fail.hh"
#include "tests/fuzz/memory_disk.hh"
#include "tests/sim/run.hh"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace cowd;
  fuzz::MemoryDisk disk("image", 1 << 30, 512);
  disk.poke(0, std::as_bytes(std::span(data, size)));
  qcow2::Header header;
  try {
    header = sim::run(qcow2::read_header(disk));
  } catch (const Error&) {
    return 0;
  }
  sim::run(qcow2::write_header(disk, header));
  const qcow2::Header again = sim::run(qcow2::read_header(disk));
  fuzz::require(
      qcow2::encode(again) == qcow2::encode(header) && again.backing_name == header.backing_name &&
          again.backing_format == header.backing_format && again.data_file == header.data_file &&
          again.bitmap_directory_offset == header.bitmap_directory_offset,
      "a header that is written again is another");
  return 0;
}
