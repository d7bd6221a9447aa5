// SPDX-License-Identifier: GPL-2.0-or-later
// Which places of a file are taken, a bit each: looked through a word at a time, for a hostile
// image may have a file of which nearly all is free. Memory: a bit for each place up to the last.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

namespace cowd::growing {

class Taken {
 public:
  bool get(uint64_t at) const {
    return at / 64 < words_.size() && words_[at / 64] >> at % 64 & 1;
  }
  // Places [first, end).
  void set(uint64_t first, uint64_t end) {
    if (first >= end) return;
    if ((end - 1) / 64 >= words_.size()) words_.resize((end - 1) / 64 + 1);
    for (uint64_t at = first; at < end;) {
      const uint64_t count = std::min(64 - at % 64, end - at);
      words_[at / 64] |= ~uint64_t{0} >> (64 - count) << at % 64;
      at += count;
    }
  }
  // The first from `at` on that is free, or taken; `end` if there is none before.
  uint64_t next_free(uint64_t at, uint64_t end) const { return next(at, end, ~uint64_t{0}); }
  uint64_t next_taken(uint64_t at, uint64_t end) const { return next(at, end, 0); }

 private:
  // `flip`: what makes ones of the bits that are looked for.
  uint64_t next(uint64_t at, uint64_t end, uint64_t flip) const {
    while (at < end) {
      const uint64_t word = at / 64 < words_.size() ? words_[at / 64] : 0;
      const uint64_t found = (word ^ flip) >> at % 64;
      if (found != 0) return std::min(at + static_cast<uint64_t>(std::countr_zero(found)), end);
      at += 64 - at % 64;
    }
    return end;
  }

  std::vector<uint64_t> words_;
};

}  // namespace cowd::growing
