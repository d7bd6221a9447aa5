// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/image_commit.hh"

#include <algorithm>
#include <exception>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "cowd/core/image_io.hh"
#include "cowd/core/image_walk.hh"
#include "formats/common/bytes.hh"

namespace cowd {
namespace {

constexpr uint64_t kSector = 512;

class StandIn : public Image {
 public:
  explicit StandIn(const Image& image) : sectors_(image.sectors()), stats_(image.stats()) {}
  uint64_t sectors() const override { return sectors_; }
  std::vector<Destination> destinations() const override { return {}; }
  uint32_t discard_granularity() const override { return 0; }
  std::vector<Answer> initial() const override { return {}; }
  Task<std::vector<Answer>> resolve(Range range, Access) override {
    Extent extent;
    extent.range = range;
    extent.read = Side::zeroes();
    co_return std::vector<Answer>{extent};
  }
  void promoted(const Promotion&) override {}
  Task<> commit(uint64_t, bool) override { co_return; }
  Task<std::vector<Answer>> discard(Range) override { co_return std::vector<Answer>{}; }
  Task<std::vector<Answer>> zero(Range) override { co_return std::vector<Answer>{}; }
  Task<std::vector<MapEntry>> map(Range range) override {
    MapEntry entry;
    entry.range = range;
    co_return std::vector<MapEntry>{entry};
  }
  Task<> preserve() override { co_return; }
  Task<> close() override { co_return; }
  nlohmann::json stats() const override { return stats_; }

 private:
  const uint64_t sectors_;
  const nlohmann::json stats_;
};

class Copier {
 public:
  Copier(Image& top, Image& base, Progress progress)
      : top_(top), base_(base), progress_(std::move(progress)) {}

  Task<CommitCounts> run() {
    MapWalk walk(top_.image());
    const uint64_t end = top_.sectors();
    for (uint64_t at = 0; at < end;) {
      if (progress_) progress_(at, end);
      const MapEntry entry = co_await walk.at(at, end);
      at = entry.range.end();
      // Behind the end of what is beneath there may be something that the top does not show.
      if (entry.depth == 0 && (entry.zero || !entry.data))
        co_await make_zero(entry.range);
      else if (entry.depth == 0)
        co_await copy(entry.range);
    }
    co_await base_.commit();
    if (progress_) progress_(end, end);
    co_return counts_;
  }

 private:
  Task<> copy(Range range) {
    while (range.len) {
      const Range piece{range.sector, std::min(range.len, kCopyPiece)};
      bytes_.resize(piece.len * kSector);
      co_await top_.read(piece, bytes_);
      co_await base_.write(piece, bytes_);
      counts_.copied += bytes_.size();
      range = {piece.end(), range.len - piece.len};
    }
  }

  // What is zero there already takes no space for it.
  Task<> make_zero(Range range) {
    MapWalk walk(base_.image());
    while (range.len) {
      const MapEntry there = co_await walk.at(range.sector, range.end());
      Range piece{range.sector, there.range.len};
      if (!there.zero) {
        piece.len = std::min(piece.len, kCopyPiece);
        bytes_.resize(piece.len * kSector);
        co_await base_.read(piece, bytes_);
        if (!is_zero(bytes_)) {
          co_await base_.zero(piece);
          counts_.zeroed += bytes_.size();
        }
      }
      range = {piece.end(), range.len - piece.len};
    }
  }

  ImageIo top_, base_;
  const Progress progress_;
  Buffer bytes_;
  CommitCounts counts_;
};

// Clean, and as short as it may be.
Task<> close_base(Image& base, Disk& disk) {
  co_await base.close();
  const uint64_t used = base.used_bytes();
  if (used && used < disk.size()) co_await disk.resize(used);
  co_await disk.flush();
}

Task<CommitCounts> write_base(CommitPlan& plan) {
  const std::unique_ptr<Image> base = co_await plan.open_base();
  CommitCounts counts;
  std::exception_ptr failure;
  try {
    Copier copier(*plan.top, *base, plan.request.progress);
    counts = co_await copier.run();
  } catch (...) {
    failure = std::current_exception();
  }
  try {
    co_await close_base(*base, *plan.base_disk);
  } catch (...) {
    // The first failure is the one to tell.
    if (!failure) failure = std::current_exception();
  }
  if (failure) std::rethrow_exception(failure);
  co_return counts;
}

}  // namespace

std::unique_ptr<Image> stand_in_for(const Image& image) { return std::make_unique<StandIn>(image); }

Task<CommitCounts> commit_image(CommitPlan plan) {
  if (plan.format->begin_commit) co_await plan.format->begin_commit(plan.request);
  const CommitCounts counts = co_await write_base(plan);
  co_await plan.top->close();
  plan.top.reset();
  if (plan.format->end_commit) co_await plan.format->end_commit(plan.request);
  co_return counts;
}

}  // namespace cowd
