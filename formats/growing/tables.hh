// SPDX-License-Identifier: GPL-2.0-or-later
// What the engine (image.hh) asks of a format: where its tables on disk say that blocks are,
// and to make them say it of new ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "formats/common/beneath.hh"
#include "formats/plugin.hh"

namespace cowd::growing {

enum class Where : uint8_t {
  beneath,  // not in this image: its parent has it, or it reads as zeroes
  zero,     // reads as zeroes, whatever is beneath
  here,     // at a place of its own
  packed,   // compressed; only the format can read it
};

// A run of the virtual disk that is in one place.
struct Piece {
  Range range;
  Where where = Where::beneath;
  uint32_t dest = 0;    // here: index of the destination
  uint64_t sector = 0;  // and where on it
  // False: its block has a place, but must be made whole before it is written to there.
  bool whole = true;
};

// The destination where blocks get new places, and the first block that gets none there.
struct Home {
  uint32_t dest = 0;
  uint64_t end = UINT64_MAX;
};

// A block and the sector of its home where its data begins.
struct Link {
  uint64_t block = 0;
  uint64_t sector = 0;
};

class Tables {
 public:
  virtual ~Tables() = default;

  // Blocks are counted from the beginning of the disk; the end of the disk may cut the last.
  virtual uint64_t sectors() const = 0;
  virtual uint32_t block_sectors() const = 0;
  virtual Home home_of(uint64_t) const { return {}; }

  // Pieces from range.sector on, in order and without gaps: at least one, perhaps less than
  // the range, perhaps more, as far as metadata in hand says.
  virtual Task<std::vector<Piece>> find(Range range) = 0;
  // The bytes of a packed block, all block_sectors() of them.
  virtual Task<> unpack(uint64_t block, std::span<std::byte> out) = 0;

  // Once, before anything is written to or given out for it.
  virtual Task<> begin_writing() { co_return; }
  // Gives each sector of the block a valid place in the image, durably, with what is there now;
  // null: nothing is beneath.
  virtual Task<> make_whole(uint64_t, Beneath*) { co_return; }
  // Writes that the blocks are there; their data is durable. In an order that a crash may cut
  // anywhere; the caller flushes in the end. If it throws it is called again with the same.
  virtual Task<> link(std::span<const Link> links) = 0;
  // The last that is written; for each destination the sector behind all that is used, 0
  // where nothing was ever given.
  virtual Task<> finish(std::span<const uint64_t>) { co_return; }
  // After finish(), as Image has them.
  virtual uint64_t used_bytes() const { return 0; }
  virtual std::vector<Image::Length> used_lengths() const { return {}; }
  virtual nlohmann::json stats() const { return nlohmann::json::object(); }
};

}  // namespace cowd::growing
