// SPDX-License-Identifier: GPL-2.0-or-later
// What RFC 1951 compresses, within a format's limits.
#pragma once

#include <cstddef>
#include <span>

namespace cowd {

enum class Wrapping { none, zlib };  // RFC 1951 as it is, or in RFC 1950's header and checksum

// Whether `in` begins with a stream that gives just out.size() bytes.
bool inflate_into(std::span<const std::byte> in, std::span<std::byte> out, Wrapping wrapping);

}  // namespace cowd
