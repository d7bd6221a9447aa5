// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/utf8.hh"

#include <cstddef>
#include <cstdint>

namespace cowd {

namespace {

// The length of the sequence that `text` begins with; 0 if it is none.
size_t sequence(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t len = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < len) return 0;
  uint32_t code = lead & (0xff >> (len + 1));
  for (size_t i = 1; i < len; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
    code = code << 6 | (byte(i) & 0x3f);
  }
  const uint32_t least = len == 2 ? 0x80 : len == 3 ? 0x800 : 0x10000;
  const bool surrogate = code >= 0xd800 && code < 0xe000;
  return code >= least && code <= 0x10ffff && !surrogate ? len : 0;
}

}  // namespace

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t len = sequence(text);
    if (len == 0) return false;
    text.remove_prefix(len);
  }
  return true;
}

}  // namespace cowd
