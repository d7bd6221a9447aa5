// SPDX-License-Identifier: GPL-2.0-or-later
// The room in a file of a growing image, in sectors: what is behind all that it uses, and the
// holes before that, which an earlier life left. Nothing is freed but at the end: what was
// given out and never used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>

namespace cowd::growing {

// What room() adds, in bytes: a daemon that dies may have given out places that nobody has
// written to, and those are found again only at the next attach.
inline constexpr uint64_t kSlack = 256 << 20;

class Space {
 public:
  // Of more holes than these the rest waits for another attach: 3 MiB of memory.
  static constexpr size_t kMaxHoles = 1 << 16;

  // [next, limit) is free.
  Space(uint64_t next, uint64_t limit) : next_(next), limit_(limit) {}

  // [first, end), before next(), is free too.
  void add_hole(uint64_t first, uint64_t end);

  // The first of `len` sectors at the end, a multiple of `align`; nothing if there is no room.
  std::optional<uint64_t> take(uint64_t len, uint64_t align);
  // The same in a hole, for `count` times `len` sectors or for as many as it has.
  std::optional<uint64_t> take_in_hole(uint64_t len, uint64_t align, uint64_t& count);
  void give_back(uint64_t first, uint64_t end);
  // Somebody before us was given [first, end).
  void used(uint64_t first, uint64_t end);
  // Whether nothing of it is free.
  bool is_given(uint64_t first, uint64_t end) const;

  uint64_t next() const { return next_; }
  uint64_t limit() const { return limit_; }
  size_t holes() const { return holes_.size(); }

 private:
  uint64_t next_;
  uint64_t limit_;
  std::map<uint64_t, uint64_t> holes_;  // first to end
};

}  // namespace cowd::growing
