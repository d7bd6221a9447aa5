// SPDX-License-Identifier: GPL-2.0-or-later
// What the kernel is told. Whatever had to be waited for, the answer itself is made of the
// state at one moment, without a suspension before it is returned: an answer that is older
// than a discard would bring back what was unmapped.
#include <algorithm>
#include <exception>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/qcow2/image.hh"
#include "formats/qcow2/inflate.hh"

namespace cowd::qcow2 {
namespace {

constexpr size_t kInflatedBytes = 2 << 20;  // kept of what was inflated last
constexpr uint64_t kMostBytes = 1 << 20;    // in one answer

}  // namespace

Task<std::vector<Answer>> Qcow2Image::resolve(Range range, Access access) {
  require_within(range);
  adopting_ = false;
  if (access == Access::leaf) co_return co_await leaf(range);
  if (access == Access::read) co_return co_await resolve_read(range);
  require_writable();
  co_return co_await resolve_write(range);
}

// --- answers ----------------------------------------------------------------------------

Extent Qcow2Image::extent_of(const Piece& piece) const {
  Extent extent;
  extent.range = piece.range;
  extent.read =
      piece.kind == Piece::Kind::zero ? Side::zeroes() : Side::at(data_dest(), piece.host);
  if (piece.in_place) extent.write = extent.read;
  return extent;
}

Extent Qcow2Image::extent_of(const Run& run) const {
  Extent extent;
  extent.range = sectors_of(run);
  extent.write = Side::at(data_dest(), run.host);
  if (run.copied) {
    extent.read = extent.write;
    extent.uncommitted = true;
    return extent;
  }
  extent.read = run.read;
  extent.granule = static_cast<uint32_t>(run.step * granule_sectors());
  extent.sync = request_.durability == Durability::always;
  return extent;
}

Bitmap Qcow2Image::bitmap_of(const Run& run) const {
  Bitmap bitmap;
  bitmap.range = sectors_of(run);
  if (run.left == 0) bitmap.all = true;
  if (run.left == 0 || run.left == run.promoted.size()) return bitmap;
  bitmap.bits.resize((run.promoted.size() + 7) / 8);
  for (uint64_t i = 0; i < run.promoted.size(); i++)
    if (run.promoted[i]) bitmap.bits[i / 8] |= std::byte(1 << i % 8);
  return bitmap;
}

// An overlay is told whole, with its bits: a fault for them is spared.
void Qcow2Image::append(std::vector<Answer>& answers, const Piece& piece) const {
  if (piece.kind != Piece::Kind::given) {
    answers.emplace_back(extent_of(piece));
    return;
  }
  answers.emplace_back(extent_of(*piece.run));
  if (!piece.run->copied) answers.emplace_back(bitmap_of(*piece.run));
}

// Of an overlay that is being taken back, or was as this cowd began, the answer comes too late, and
// the kernel asks anew.
Task<std::vector<Answer>> Qcow2Image::leaf(Range range) {
  const RunPtr run = run_at(granule_of(range.sector));
  if (!run || run->copied || !(sectors_of(*run) == range))
    throw Error(ESTALE, request_.top->name() +
                            ": the kernel asks for the bits of an overlay that it has not from "
                            "here: a defect of cowd or of dm-userspace.");
  std::vector<Answer> answers;
  answers.emplace_back(bitmap_of(*run));
  co_return answers;
}

// --- reads ------------------------------------------------------------------------------

Task<std::vector<Answer>> Qcow2Image::resolve_read(Range range) {
  using Kind = Piece::Kind;
  const auto is = [](Kind kind) { return [kind](const Piece& p) { return p.kind == kind; }; };
  for (;;) {
    Loaded loaded = co_await load_run(range);
    const uint64_t limit = loaded.limit;
    std::vector<Piece>& found = loaded.pieces;
    if (found.empty()) continue;
    if (found[0].kind == Kind::given && found[0].run->closing) {
      co_await changed_.wait();
      continue;
    }
    std::vector<Answer> answers;
    if (unmappable_ || found[0].kind == Kind::compressed) {
      Range part = range;
      if (!unmappable_) part.len = std::min(found[0].range.end(), range.end()) - range.sector;
      Data data = co_await bytes_of(part);
      // What was read may have been freed and used again meanwhile.
      const std::vector<Piece> now = pieces(range, limit);
      if (now.empty() || now[0] != found[0]) continue;
      answers.emplace_back(std::move(data));
      co_return answers;
    }
    // Bytes serve only the bio that asks for them: another fault will.
    found.erase(std::ranges::find_if(found, is(Kind::compressed)), found.end());
    const auto closing = [](const Piece& p) { return p.kind == Kind::given && p.run->closing; };
    found.erase(std::ranges::find_if(found, closing), found.end());
    std::vector<std::vector<Answer>> below(found.size());
    bool waited = false;
    for (size_t i = 0; i < found.size(); i++) {
      if (found[i].kind != Kind::beneath) continue;
      below[i] = co_await beneath_->read(found[i].range);
      waited = true;
    }
    if (waited) {
      const std::vector<Piece> now = pieces(range, limit);
      if (now.size() < found.size() || !std::equal(found.begin(), found.end(), now.begin()))
        continue;
    }
    for (size_t i = 0; i < found.size(); i++) {
      if (found[i].kind != Kind::beneath) append(answers, found[i]);
      for (Answer& answer : below[i]) answers.push_back(std::move(answer));
    }
    co_return answers;
  }
}

Task<Data> Qcow2Image::bytes_of(Range range) {
  Data data;
  data.range = {range.sector, std::min(range.len, kMostBytes / kSector)};
  data.bytes.resize(data.range.len * kSector);
  co_await read_range(data.range, data.bytes);
  co_return data;
}

// What is read there as long as nothing more is promoted.
Task<> Qcow2Image::read_range(Range range, std::span<std::byte> out) {
  while (range.len) {
    co_await load({range.sector, 1});
    std::optional<Piece> piece = piece_at(range.sector);
    if (!piece) continue;
    piece->range.len = std::min(piece->range.end(), range.end()) - range.sector;
    const uint64_t bytes = piece->range.len * kSector;
    co_await read_piece(*piece, out.first(bytes));
    out = out.subspan(bytes);
    range = {piece->range.end(), range.end() - piece->range.end()};
  }
}

// A piece within one cluster, or one that is in a row.
Task<> Qcow2Image::read_piece(const Piece& piece, std::span<std::byte> out) {
  switch (piece.kind) {
    case Piece::Kind::zero: std::ranges::fill(out, std::byte{0}); break;
    case Piece::Kind::data: co_await read_any(data_disk(), piece.host * kSector, out); break;
    case Piece::Kind::beneath: co_await beneath_->read_bytes(piece.range, out); break;
    case Piece::Kind::compressed: {
      const uint64_t cluster = piece.range.sector / cluster_sectors();
      const std::shared_ptr<const Buffer> whole = co_await inflated(cluster, piece.raw);
      const uint64_t skip = piece.range.sector % cluster_sectors() * kSector;
      std::copy_n(whole->begin() + static_cast<ptrdiff_t>(skip), out.size(), out.begin());
      break;
    }
    case Piece::Kind::given: throw Error(EIO, "What is given cannot be read as a piece.");
  }
}

// The entry names the place, so what is kept is right as long as the entry is the same and
// its clusters were not used again; finish() in commit.cc drops what may have been.
Task<std::shared_ptr<const Buffer>> Qcow2Image::inflated(uint64_t cluster, uint64_t raw) {
  for (auto at = inflated_.begin(); at != inflated_.end(); ++at) {
    if (at->first != raw) continue;
    inflated_.splice(inflated_.begin(), inflated_, at);
    co_return at->second;
  }
  const CompressedPlace place = compressed_place(*header_, raw);
  if (place.bytes > 2 * header_->cluster() + kSector || place.offset >= request_.top->size())
    throw Error(EIO, request_.top->name() + ": cluster " + std::to_string(cluster) +
                         " of the disk is compressed, and its place or length cannot be. Run "
                         "'cowctl check', and restore the image from a backup.");
  Buffer in(place.bytes);
  co_await read_any(*request_.top, place.offset, in);
  auto whole = std::make_shared<Buffer>(header_->cluster());
  inflate(header_->compression, in, *whole,
          request_.top->name() + ": cluster " + std::to_string(cluster) + " of the disk");
  inflated_.emplace_front(raw, whole);
  while (inflated_.size() > 1 && inflated_.size() * header_->cluster() > kInflatedBytes)
    inflated_.pop_back();
  co_return whole;
}

// --- writes -----------------------------------------------------------------------------

Task<std::vector<Answer>> Qcow2Image::resolve_write(Range range) {
  using Kind = Piece::Kind;
  const auto writable = [](const Piece& p) { return p.in_place || p.kind == Kind::given; };
  for (;;) {
    const Loaded loaded = co_await load_run(range);
    if (const RunPtr run = run_at(granule_of(range.sector));
        run && (run->filling || run->closing)) {
      co_await changed_.wait();
      continue;
    }
    const std::vector<Piece>& found = loaded.pieces;
    if (found.empty()) continue;
    if (!writable(found[0])) {
      std::exception_ptr is_full;
      try {
        co_await give(granule_of(range.sector), range.end());
      } catch (const Error& error) {
        if (error.code() != ENOSPC) throw;
        is_full = std::current_exception();
      }
      if (is_full) {
        // What was discarded is room once that is committed.
        const bool discarded = !own_.empty();
        if (discarded) co_await commit_own();
        if (!co_await take_back_unused() && !discarded) std::rethrow_exception(is_full);
        co_await give(granule_of(range.sector), range.end());
      }
      continue;
    }
    std::vector<Answer> answers;
    for (const Piece& piece : found) {
      if (!writable(piece) || (piece.kind == Kind::given && piece.run->closing)) break;
      append(answers, piece);
    }
    co_return answers;
  }
}

}  // namespace cowd::qcow2
