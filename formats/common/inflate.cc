// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/common/inflate.hh"

#include <zlib.h>

#include <new>

namespace cowd {

bool inflate_into(std::span<const std::byte> in, std::span<std::byte> out, Wrapping wrapping) {
  z_stream stream{};
  if (inflateInit2(&stream, wrapping == Wrapping::zlib ? MAX_WBITS : -MAX_WBITS) != Z_OK)
    throw std::bad_alloc();
  // zlib's interface is not const; it does not write there.
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(in.data()));
  stream.avail_in = static_cast<uInt>(in.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  const int result = inflate(&stream, Z_FINISH);
  inflateEnd(&stream);
  // Z_BUF_ERROR: all of `out` is there, and more would have come.
  return (result == Z_STREAM_END || result == Z_BUF_ERROR) && stream.avail_out == 0;
}

}  // namespace cowd
