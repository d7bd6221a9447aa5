// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/qcow2/inflate.hh"

#include <zstd.h>

#include <memory>

#include "cowd/core/error.hh"
#include "formats/common/inflate.hh"

namespace cowd::qcow2 {
namespace {

bool inflate_zstd(std::span<const std::byte> in, std::span<std::byte> out) {
  const std::unique_ptr<ZSTD_DCtx, size_t (*)(ZSTD_DCtx*)> context(ZSTD_createDCtx(),
                                                                   ZSTD_freeDCtx);
  if (!context) throw std::bad_alloc();
  ZSTD_inBuffer from{in.data(), in.size(), 0};
  ZSTD_outBuffer to{out.data(), out.size(), 0};
  // The frame is followed by the rest of its sector: as a stream it may end before `in`.
  while (to.pos < to.size) {
    const size_t before = from.pos + to.pos;
    const size_t result = ZSTD_decompressStream(context.get(), &to, &from);
    if (ZSTD_isError(result) || from.pos + to.pos == before) return false;
    if (result == 0) break;
  }
  return to.pos == to.size;
}

}  // namespace

void inflate(Compression compression, std::span<const std::byte> in, std::span<std::byte> out,
             const std::string& what) {
  const bool done =
      compression == Compression::zstd ? inflate_zstd(in, out) : inflate_into(in, out, Wrapping::none);
  if (!done)
    throw Error(EIO, what +
                         " is compressed and cannot be read: its bytes are damaged. Restore "
                         "the image from a backup.");
}

}  // namespace cowd::qcow2
