// SPDX-License-Identifier: GPL-2.0-or-later
// Promotions that no commit has covered yet, by page.
//
// A promotion is in one of two sets. `waiting`: told, not yet taken up by a commit.
// `frozen`: taken up by the commit under way, which may write their bits once
// their data is flushed. freeze(seq) moves from the first to the second; then
// either the commit ends well and forget() drops the frozen ones, or it fails and
// thaw() moves them back, as if it had not been tried. Both sets count as promoted
// for whoever asks.
//
// Memory: 16 bytes a promotion told and not committed, about; the kernel bounds their
// number (max_uncommitted).
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "formats/dscow/layout.hh"

namespace cowd::dscow {

struct Run {
  uint32_t first = 0;  // granule within the page
  uint32_t count = 0;
  uint64_t seq = 0;
};

class Uncommitted {
 public:
  using Pages = std::map<uint64_t, std::vector<Run>>;

  // Granules of the whole disk.
  void add(uint64_t first, uint64_t count, uint64_t seq);

  // False if there is nothing up to seq. Only while nothing is frozen.
  bool freeze(uint64_t seq);
  void thaw();
  void forget() { frozen_.clear(); }
  const Pages& frozen() const { return frozen_; }

  bool empty() const { return waiting_.empty() && frozen_.empty(); }
  bool touches(uint64_t page) const { return waiting_.count(page) || frozen_.count(page); }
  // Sets the bits of one page's promotions, in both sets.
  void or_into(uint64_t page, std::span<std::byte> bits) const;
  uint64_t granules() const;

 private:
  Pages waiting_;
  Pages frozen_;
};

}  // namespace cowd::dscow
