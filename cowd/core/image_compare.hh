// SPDX-License-Identifier: GPL-2.0-or-later
// Whether two images hold the same disk.
#pragma once

#include <cstdint>

#include "formats/plugin.hh"

namespace cowd {

struct Difference {
  enum class Kind : uint8_t {
    none,
    size,    // only if strict
    status,  // only if strict: one has data, or says zeroes, where the other has not or does not
    content,
  } kind = Kind::none;
  uint64_t offset = 0;  // bytes, of the first sector that differs; of content and status
};

// The first difference. What both maps say is zero is not read. Unless strict the shorter one
// goes on with zeroes.
Task<Difference> compare_images(Image& a, Image& b, bool strict, Progress progress);

}  // namespace cowd
