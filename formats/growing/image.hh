// SPDX-License-Identifier: GPL-2.0-or-later
// The engine of images that are made of equal blocks, each somewhere in the file or nowhere,
// and that grow at their end: vhd, vmdk, qcow. A format says where blocks are (tables.hh);
// what is done with that is here.
//
// States of a block
//   as the tables say   nothing of it is kept in memory
//   given               has a new place, its data is not there yet: reads go where they went.
//                       Unless we have filled it: then both places have the same, and reads go
//                       to the new one, for its promotion may be told late
//   linked              promoted: the kernel's data is at the new place
//   durable             the tables say so. Forgotten as soon as no question is being answered
//                       that may have asked the tables before
//
// First writes
//   A run of blocks that are all read from one linear place, or are zeroes, gets a run of new
//   places and is answered as one overlay; the granule is the block. While one of its blocks is
//   not durable, the run is remembered, and each write fault in it gets the very same overlay
//   with the bits that are set by now: the kernel takes it again if it has forgotten it.
//   A block that cannot be a granule (cut by the end of the disk, compressed, beneath it two
//   places) is filled by us at its new place and answered as a plain, uncommitted extent.
//   New places are given under a lock, one question at a time, so none is given twice. A hole
//   that an earlier life left is filled before the file grows.
//
// After a restart
//   What an earlier daemon gave is told by the kernel: on replay, and without that mark what is
//   promoted until it has been made to forget the rest. All of it is taken as used before
//   anything is given.
//
// commit(seq), in this order:
//   1. all that was linked up to seq is taken up; what comes later waits
//   2. flush, unless the caller did (D1)
//   3. the tables are written (Tables::link()), flush
//   4. what was taken up is durable
// A failure leaves it linked for the next commit. Blocks are only ever added to tables, and a
// place is given only if no table has it, so what a crash leaves unlinked is a hole: room for
// the next attach.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cowd/core/semaphore.hh"
#include "formats/common/beneath.hh"
#include "formats/growing/space.hh"
#include "formats/growing/tables.hh"
#include "formats/plugin.hh"

namespace cowd::growing {

// How places are given out: each block needs `lead` sectors before its data and begins, with
// them, at a multiple of `align`. With a lead, places do not follow each other.
struct Shape {
  uint64_t align = 1;
  uint64_t lead = 0;
};

struct Parts {
  OpenRequest request;
  std::vector<Destination> own;  // the top first; before those of what is beneath
  std::unique_ptr<Tables> tables;
  std::unique_ptr<Beneath> beneath;  // null: zeroes
  // Of each of `own`; null, or none at all: no block is given a place there.
  std::vector<std::shared_ptr<Space>> spaces;
  Shape shape;
};

class GrowingImage : public Image {
 public:
  explicit GrowingImage(Parts parts);

  uint64_t sectors() const override { return tables_->sectors(); }
  std::vector<Destination> destinations() const override;
  uint32_t discard_granularity() const override { return 0; }
  std::vector<Answer> initial() const override { return {}; }
  Task<std::vector<Answer>> resolve(Range range, Access access) override;
  void promoted(const Promotion& promotion) override;
  Task<> commit(uint64_t seq, bool data_flushed) override;
  // Nothing is freed.
  Task<std::vector<Answer>> discard(Range range) override;
  Task<std::vector<Answer>> zero(Range range) override;
  Task<std::vector<MapEntry>> map(Range range) override;
  Task<> preserve() override;
  Task<> close() override;
  nlohmann::json stats() const override;
  uint64_t used_bytes() const override { return read_only() ? 0 : tables_->used_bytes(); }
  std::vector<Length> used_lengths() const override;
  bool forgets_on_reattach() const override { return !read_only(); }

 private:
  struct Block {
    enum class State : uint8_t { given, linked, durable } state = State::given;
    uint32_t dest = 0;
    uint64_t sector = 0;
    uint64_t seq = 0;
    bool filled = false;  // by us: all of it is at the new place
  };
  // What was answered as one overlay.
  struct Run {
    uint64_t first = 0;
    uint64_t count = 0;
    uint32_t dest = 0;
    uint64_t sector = 0;
    Side read;
    uint64_t left = 0;  // blocks that are not durable
  };
  class Asking;

  bool read_only() const { return request_.read_only; }
  uint64_t block_sectors() const { return tables_->block_sectors(); }
  uint64_t blocks() const { return (sectors() + block_sectors() - 1) / block_sectors(); }
  Range sectors_of(uint64_t first, uint64_t count) const;
  bool is_cut(uint64_t block) const { return (block + 1) * block_sectors() > sectors(); }

  Task<std::vector<Answer>> read_answers(Range range);
  Task<bool> append(std::vector<Answer>& answers, Piece piece, Range range);
  Task<bool> append_bytes(std::vector<Answer>& answers, Range asked);
  Task<> read_piece(Piece piece, Range part, std::span<std::byte> out);
  bool is_in_blocks(const Piece& piece) const;
  void with_given(Answer answer, std::vector<Answer>& answers) const;

  Task<> begin_writing();
  Task<std::vector<Answer>> write_answers(Range range);
  Task<std::vector<Piece>> find_run(Range range);
  std::vector<Answer> in_place(const std::vector<Piece>& pieces) const;
  uint64_t first_given(uint64_t sector) const;
  Task<std::vector<Answer>> give(uint64_t block, const std::vector<Piece>& pieces, Range range);
  uint64_t wanted(uint64_t block, Range range);
  uint64_t alike(uint64_t block, const std::vector<Piece>& pieces) const;
  Task<std::vector<Answer>> fill(uint64_t block, Piece piece);
  Task<> old_bytes(uint64_t block, Piece piece, std::span<std::byte> out);
  Space* space_of(uint32_t dest) const {
    return dest < spaces_.size() ? spaces_[dest].get() : nullptr;
  }
  Range place_of(uint64_t sector) const;
  uint64_t take(uint32_t dest, uint64_t& count);
  std::vector<Answer> overlay_of(const Run& run) const;
  Extent plain_of(uint64_t block, const Block& at) const;
  Task<std::vector<Answer>> leaf(Range range);
  Run* run_of(uint64_t block);
  const Run* run_of(uint64_t block) const { return const_cast<GrowingImage*>(this)->run_of(block); }

  void link(uint64_t block, uint64_t sector, const Promotion& promotion);
  Task<> flush_homes(const std::vector<Link>& links);
  void made_durable(const std::vector<Link>& links, uint64_t seq);
  void forget_durable();
  void give_back_unused();
  Task<bool> is_zero(Range range);
  void require_within(Range range) const;

  const OpenRequest request_;
  Disk& top_;
  const std::vector<Destination> own_;
  const std::unique_ptr<Tables> tables_;
  const std::unique_ptr<Beneath> beneath_;
  const std::vector<std::shared_ptr<Space>> spaces_;
  const Shape shape_;
  uint64_t unit_ = 1;  // sectors: the largest block of any of the disks

  AsyncSemaphore writing_{1};
  bool begun_ = false;
  bool adopting_;  // nothing was asked yet since an earlier daemon's time
  std::map<uint64_t, Block> blocks_;
  std::map<uint64_t, Run> runs_;      // by their first block
  unsigned asking_ = 0;               // questions under way
  uint64_t next_block_ = UINT64_MAX;  // where a sequential writer would go on
  uint64_t ahead_ = 0;                // blocks given beyond what it asked for
  std::string misled_;
  uint64_t given_ = 0, filled_ = 0, commits_ = 0, failed_commits_ = 0;
};

// Throws EROFS or EINVAL for what no growing image can be opened with.
void require_sensible(const OpenRequest& request, const std::string& format);

}  // namespace cowd::growing
