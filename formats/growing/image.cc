// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/growing/image.hh"

#include <algorithm>
#include <exception>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/bytes.hh"

namespace cowd::growing {
namespace {

constexpr size_t kMaxAnswers = 64;         // of one question
constexpr int kCallsAhead = 64;            // of find(), for one run
constexpr uint64_t kMaxAhead = 4 << 11;    // sectors: 4 MiB
constexpr uint64_t kMaxRun = 32 << 11;     // sectors: 32 MiB
constexpr uint64_t kLeafGranules = 32768;  // DMU_LEAF_GRANULES: a run is one leaf
constexpr uint64_t kMaxBytes = 64 << 10;   // of what cannot be mapped, at once
constexpr uint64_t kSector = 512;

Range common(Range a, Range b) {
  const uint64_t sector = std::max(a.sector, b.sector);
  const uint64_t end = std::min(a.end(), b.end());
  return {sector, end > sector ? end - sector : 0};
}

Side after(Side side, uint64_t sectors) {
  if (side.kind == Side::Kind::disk) side.sector += sectors;
  return side;
}

Answer part_of(const Answer& answer, Range part) {
  const uint64_t skipped = part.sector - range_of(answer).sector;
  if (const auto* data = std::get_if<Data>(&answer)) {
    const auto first = data->bytes.begin() + static_cast<ptrdiff_t>(skipped * kSector);
    return Data{part, {first, first + static_cast<ptrdiff_t>(part.len * kSector)}};
  }
  Extent extent = std::get<Extent>(answer);
  extent.range = part;
  extent.read = after(extent.read, skipped);
  extent.write = after(extent.write, skipped);
  return extent;
}

// Where one plain extent goes on with the next, they are one.
bool joins(const Answer& a, const Answer& b) {
  const auto* first = std::get_if<Extent>(&a);
  const auto* second = std::get_if<Extent>(&b);
  return first && second && first->range.end() == second->range.sector &&
         after(first->read, first->range.len) == second->read &&
         after(first->write, first->range.len) == second->write;
}

std::vector<Answer> joined(std::vector<Answer> answers) {
  std::vector<Answer> all;
  for (Answer& answer : answers) {
    if (!all.empty() && joins(all.back(), answer))
      std::get<Extent>(all.back()).range.len += range_of(answer).len;
    else
      all.push_back(std::move(answer));
  }
  return all;
}

bool goes_on(const Piece& a, const Piece& b) {
  if (a.where != b.where || a.dest != b.dest || a.whole != b.whole) return false;
  return a.where == Where::here ? a.sector + a.range.len == b.sector : a.where == Where::zero;
}

std::vector<Answer> only(Answer answer) {
  std::vector<Answer> answers;
  answers.push_back(std::move(answer));
  return answers;
}

}  // namespace

// While one lives, no block is forgotten: who has asked the tables before a commit and looks
// at the blocks after it must find the block in one of them.
class GrowingImage::Asking {
 public:
  explicit Asking(GrowingImage& image) : image_(image) { image_.asking_++; }
  ~Asking() {
    if (--image_.asking_ == 0) image_.forget_durable();
  }
  Asking(const Asking&) = delete;
  Asking& operator=(const Asking&) = delete;

 private:
  GrowingImage& image_;
};

GrowingImage::GrowingImage(Parts parts)
    : request_(std::move(parts.request)),
      top_(*request_.top),
      own_(std::move(parts.own)),
      tables_(std::move(parts.tables)),
      beneath_(std::move(parts.beneath)),
      spaces_(std::move(parts.spaces)),
      shape_(parts.shape),
      adopting_(request_.reattach) {
  for (const Destination& each : destinations())
    unit_ = std::max(unit_, each.disk->block_size() / kSector);
}

std::vector<Destination> GrowingImage::destinations() const {
  std::vector<Destination> all = own_;
  if (!beneath_) return all;
  const std::vector<Destination> others = beneath_->destinations();
  all.insert(all.end(), others.begin(), others.end());
  return all;
}

Range GrowingImage::sectors_of(uint64_t first, uint64_t count) const {
  const uint64_t sector = first * block_sectors();
  return {sector, std::min(sector + count * block_sectors(), sectors()) - sector};
}

Task<std::vector<Answer>> GrowingImage::resolve(Range range, Access access) {
  require_within(range);
  adopting_ = false;
  switch (access) {
    case Access::read: co_return co_await read_answers(range);
    case Access::leaf: co_return co_await leaf(range);
    case Access::write: break;
  }
  co_return co_await write_answers(range);
}

// --- reads ------------------------------------------------------------------

// What is in `range`, runs put together, and how far the last of them goes on, so that a run
// is one fault.
Task<std::vector<Piece>> GrowingImage::find_run(Range range) {
  std::vector<Piece> run;
  for (int calls = 0; calls < kCallsAhead; calls++) {
    const uint64_t at = run.empty() ? range.sector : run.back().range.end();
    if (at >= sectors()) break;
    const std::vector<Piece> found =
        co_await tables_->find({at, at < range.end() ? range.end() - at : 1});
    for (const Piece& piece : found) {
      if (!run.empty() && goes_on(run.back(), piece))
        run.back().range.len += piece.range.len;
      else if (run.empty() || piece.range.sector < range.end())
        run.push_back(piece);
      else
        co_return run;
    }
  }
  co_return run;
}

Task<std::vector<Answer>> GrowingImage::read_answers(Range range) {
  const Asking asking(*this);
  std::vector<Answer> found;
  bool more = true;
  while (more && range.len != 0 && found.size() < kMaxAnswers) {
    const std::vector<Piece> pieces = co_await find_run(range);
    for (const Piece& piece : pieces) {
      more = more && co_await append(found, piece, range);
      if (!more || found.size() >= kMaxAnswers) break;
    }
    const uint64_t end = found.empty() ? range.sector : range_of(found.back()).end();
    range = end < range.end() ? Range{end, range.end() - end} : Range{end, 0};
  }
  // Nothing may suspend from here on.
  std::vector<Answer> answers;
  for (Answer& answer : found) with_given(std::move(answer), answers);
  co_return joined(std::move(answers));
}

// False: the answers end here, for now.
Task<bool> GrowingImage::append(std::vector<Answer>& answers, Piece piece, Range range) {
  const uint64_t at = answers.empty() ? range.sector : range_of(answers.back()).end();
  if (piece.range.sector > at) co_return false;  // the block before it lies in parts
  const bool ends_in_block = piece.range.end() % unit_ != 0 && piece.range.end() != sectors();
  if (ends_in_block) piece.range.len -= piece.range.end() % unit_;
  if (piece.range.sector % unit_ != 0 || piece.range.end() <= piece.range.sector)
    co_return co_await append_bytes(answers, {at, unit_ - at % unit_});
  if (piece.where == Where::here && !is_in_blocks(piece))
    co_return co_await append_bytes(answers, common(piece.range, range));
  Extent extent;
  extent.range = piece.range;
  if (piece.where == Where::here) {
    extent.read = Side::at(piece.dest, piece.sector);
    if (begun_ && piece.whole) extent.write = extent.read;
    answers.emplace_back(extent);
    co_return true;
  }
  if (piece.where == Where::zero || (piece.where == Where::beneath && !beneath_)) {
    extent.read = Side::zeroes();
    answers.emplace_back(extent);
    co_return true;
  }
  const Range asked = common(piece.range, range);
  if (asked.len == 0) co_return false;
  if (piece.where == Where::packed) {
    // The kernel takes only bytes that it has asked for.
    if (!answers.empty()) co_return false;
    const uint64_t block = asked.sector / block_sectors();
    Data data;
    data.range = sectors_of(block, 1);
    data.bytes.resize(block_sectors() * kSector);
    co_await tables_->unpack(block, data.bytes);
    data.bytes.resize(data.range.len * kSector);
    const Range part{asked.sector, data.range.end() - asked.sector};
    const Answer whole(std::move(data));
    answers.push_back(part_of(whole, part));
    co_return false;
  }
  std::vector<Answer> beneath = co_await beneath_->read(asked);
  const bool all = range_of(beneath.back()).end() == asked.end();
  for (Answer& answer : beneath) answers.push_back(std::move(answer));
  co_return all;
}

// The kernel cannot read what does not begin where a block of the disk does.
bool GrowingImage::is_in_blocks(const Piece& piece) const {
  const uint64_t block = own_.at(piece.dest).disk->block_size() / kSector;
  return piece.sector % block == piece.range.sector % block;
}

// For what no extent can be: not at the disk's blocks, or a block that is in several places.
Task<bool> GrowingImage::append_bytes(std::vector<Answer>& answers, Range asked) {
  // The kernel takes only bytes that it has asked for.
  if (asked.len == 0 || !answers.empty()) co_return false;
  Data data;
  data.range = {asked.sector, std::min({asked.len, kMaxBytes / kSector, sectors() - asked.sector})};
  data.bytes.resize(data.range.len * kSector);
  for (uint64_t at = data.range.sector; at < data.range.end();) {
    const std::vector<Piece> pieces = co_await tables_->find({at, data.range.end() - at});
    for (const Piece& piece : pieces) {
      const Range part = common(piece.range, data.range);
      if (part.len == 0) break;
      const std::span<std::byte> out =
          std::span(data.bytes)
              .subspan((part.sector - data.range.sector) * kSector, part.len * kSector);
      co_await read_piece(piece, part, out);
      at = part.end();
    }
  }
  answers.emplace_back(std::move(data));
  co_return false;
}

Task<> GrowingImage::read_piece(Piece piece, Range part, std::span<std::byte> out) {
  if (piece.where == Where::here) {
    const uint64_t from = piece.sector + part.sector - piece.range.sector;
    co_await read_any(*own_.at(piece.dest).disk, from * kSector, out);
  } else if (piece.where == Where::packed) {
    Buffer bytes(block_sectors() * kSector);
    const uint64_t block = part.sector / block_sectors();
    co_await tables_->unpack(block, bytes);
    const uint64_t from = part.sector - block * block_sectors();
    std::ranges::copy(std::span(bytes).subspan(from * kSector, out.size()), out.begin());
  } else if (piece.where == Where::beneath && beneath_) {
    co_await beneath_->read_bytes(part, out);
  }
}

// The answer as the tables have it, with what was written since. A run has one extent with a
// write side, its overlay, and no other.
void GrowingImage::with_given(Answer answer, std::vector<Answer>& answers) const {
  const Range range = range_of(answer);
  uint64_t at = range.sector;
  for (auto found = blocks_.lower_bound(at / block_sectors());
       found != blocks_.end() && found->first * block_sectors() < range.end(); ++found) {
    const auto& [block, given] = *found;
    if (given.state == Block::State::given && !given.filled) continue;
    const Range part = common(sectors_of(block, 1), range);
    if (part.sector > at) answers.push_back(part_of(answer, {at, part.sector - at}));
    Extent extent = plain_of(block, given);
    extent.uncommitted = extent.sync = false;
    if (given.state == Block::State::given || run_of(block)) extent.write = Side::fault();
    answers.push_back(part_of(extent, part));
    at = part.end();
  }
  if (at < range.end()) answers.push_back(part_of(answer, {at, range.end() - at}));
  // A durable block of a run that is not finished.
  for (Answer& each : answers)
    if (auto* extent = std::get_if<Extent>(&each);
        extent && !runs_.empty() && extent->write.kind != Side::Kind::none) {
      const uint64_t first = extent->range.sector / block_sectors();
      const uint64_t last = (extent->range.end() - 1) / block_sectors();
      auto next = runs_.upper_bound(last);
      if (next == runs_.begin()) continue;
      --next;
      if (next->second.first + next->second.count > first) extent->write = Side::fault();
    }
}

// --- first writes -----------------------------------------------------------

Task<> GrowingImage::begin_writing() {
  if (read_only())
    throw Error(EROFS,
                top_.name() + " is attached read-only: attach it for writing to write to it.");
  if (begun_) co_return;
  const auto hold = co_await writing_.acquire();
  if (begun_) co_return;
  co_await tables_->begin_writing();
  begun_ = true;
}

Task<std::vector<Answer>> GrowingImage::write_answers(Range range) {
  co_await begin_writing();
  const Asking asking(*this);
  // What it takes to read of the tables is read outside of the lock.
  co_await find_run(range);
  const auto hold = co_await writing_.acquire();
  const uint64_t block = range.sector / block_sectors();
  if (const Run* run = run_of(block)) co_return overlay_of(*run);
  if (const auto found = blocks_.find(block); found != blocks_.end())
    co_return only(plain_of(block, found->second));

  const Range from_block{
      block * block_sectors(),
      std::max(range.end(), sectors_of(block, 1).end()) - block * block_sectors()};
  std::vector<Piece> pieces = co_await find_run(from_block);
  if (!pieces.front().whole) {
    co_await tables_->make_whole(block, beneath_.get());
    pieces = co_await find_run(from_block);
  }
  if (pieces.front().where == Where::here) co_return in_place(pieces);
  co_return co_await give(block, pieces, range);
}

// What has a place already, as far as it goes.
std::vector<Answer> GrowingImage::in_place(const std::vector<Piece>& pieces) const {
  std::vector<Answer> answers;
  for (const Piece& piece : pieces) {
    if (piece.where != Where::here || !piece.whole) break;
    const uint64_t end = std::min(piece.range.end(), first_given(piece.range.sector));
    if (end <= piece.range.sector) break;
    Extent extent;
    extent.range = {piece.range.sector, end - piece.range.sector};
    extent.read = extent.write = Side::at(piece.dest, piece.sector);
    answers.emplace_back(extent);
    if (end < piece.range.end()) break;
  }
  answers = joined(std::move(answers));
  if (answers.size() > kMaxAnswers) answers.resize(kMaxAnswers);
  return answers;
}

// From `sector` on, where a block begins that was given out and is not in the tables yet.
uint64_t GrowingImage::first_given(uint64_t sector) const {
  const uint64_t block = sector / block_sectors();
  if (run_of(block)) return sector;
  uint64_t first = UINT64_MAX / block_sectors();
  if (const auto given = blocks_.lower_bound(block); given != blocks_.end()) first = given->first;
  if (const auto run = runs_.upper_bound(block); run != runs_.end())
    first = std::min(first, run->second.first);
  return first * block_sectors();
}

Task<std::vector<Answer>> GrowingImage::give(uint64_t block, const std::vector<Piece>& pieces,
                                             Range range) {
  const Piece first = pieces.front();
  const Home home = tables_->home_of(block);
  if (!space_of(home.dest))
    throw Error(EINVAL, top_.name() + " cannot grow, and block " + std::to_string(block) +
                            " has no place in it: a defect of its format's plugin.");
  if (is_cut(block) || first.where == Where::packed) co_return co_await fill(block, first);
  uint64_t count = std::min({alike(block, pieces), wanted(block, range), home.end - block});
  Side read = Side::zeroes();
  if (first.where == Where::beneath && beneath_) {
    const std::vector<Answer> beneath = co_await beneath_->read(sectors_of(block, count));
    const auto* extent = std::get_if<Extent>(&beneath.front());
    if (!extent || extent->range.len < block_sectors()) co_return co_await fill(block, first);
    read = extent->read;
    count = std::min(count, extent->range.len / block_sectors());
  }
  Run run;
  run.first = block;
  run.read = read;
  run.dest = home.dest;
  run.sector = take(home.dest, count);
  run.count = run.left = count;
  for (uint64_t i = 0; i < count; i++)
    blocks_[block + i] = {Block::State::given, run.dest, run.sector + i * block_sectors(), 0,
                          false};
  runs_[block] = run;
  given_ += count;
  next_block_ = block + count;
  co_return overlay_of(run);
}

// How many blocks to give at once: what is asked for, and more for who writes on and on.
uint64_t GrowingImage::wanted(uint64_t block, Range range) {
  if (shape_.lead != 0) return 1;  // their data does not follow
  const uint64_t asked = (range.end() + block_sectors() - 1) / block_sectors() - block;
  const uint64_t most_ahead = kMaxAhead / block_sectors();
  ahead_ = block == next_block_ ? std::min(std::max<uint64_t>(2 * ahead_, 4), most_ahead) : 0;
  const uint64_t most = std::clamp<uint64_t>(kMaxRun / block_sectors(), 1, kLeafGranules);
  return std::min(asked + ahead_, most);
}

// How many whole blocks from this one on are where it is, as far as the pieces go.
uint64_t GrowingImage::alike(uint64_t block, const std::vector<Piece>& pieces) const {
  uint64_t end = block * block_sectors();
  for (const Piece& piece : pieces) {
    if (piece.where != pieces.front().where || !piece.whole || piece.range.sector > end) break;
    end = piece.range.end();
  }
  uint64_t stop = end / block_sectors();
  const auto given = blocks_.lower_bound(block);
  if (given != blocks_.end()) stop = std::min(stop, given->first);
  return std::max<uint64_t>(stop, block + 1) - block;
}

// The block's bytes, put at its new place by us.
Task<std::vector<Answer>> GrowingImage::fill(uint64_t block, Piece piece) {
  Buffer bytes(block_sectors() * kSector);
  co_await old_bytes(block, piece, bytes);
  const uint32_t dest = tables_->home_of(block).dest;
  uint64_t count = 1;
  const uint64_t sector = take(dest, count);
  Disk& disk = *own_.at(dest).disk;
  std::exception_ptr failure;
  try {
    co_await disk.write_at(sector * kSector, bytes);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    const Range place = place_of(sector);
    space_of(dest)->give_back(place.sector, place.end());
    std::rethrow_exception(failure);
  }
  const Block given{Block::State::given, dest, sector, 0, true};
  blocks_[block] = given;
  filled_++;
  co_return only(plain_of(block, given));
}

Task<> GrowingImage::old_bytes(uint64_t block, Piece piece, std::span<std::byte> out) {
  const Range range = sectors_of(block, 1);
  if (piece.where == Where::packed)
    co_await tables_->unpack(block, out);
  else if (piece.where == Where::beneath && beneath_)
    co_await beneath_->read_bytes(range, out.first(range.len * kSector));
}

// All that a block takes whose data begins at `sector`.
Range GrowingImage::place_of(uint64_t sector) const {
  return {sector - shape_.lead, shape_.lead + block_sectors()};
}

// Room for `count` blocks, or for fewer; the sector of the first one's data.
uint64_t GrowingImage::take(uint32_t dest, uint64_t& count) {
  Space& space = *space_of(dest);
  const uint64_t len = shape_.lead + block_sectors();
  if (const auto first = space.take_in_hole(len, shape_.align, count)) return *first + shape_.lead;
  for (; count != 0; count /= 2)
    if (const auto first = space.take(len * count, shape_.align)) return *first + shape_.lead;
  throw Error(ENOSPC, own_.at(dest).disk->name() + " has no room for another block of " +
                          std::to_string(block_sectors() * kSector) + " bytes: it has " +
                          std::to_string(space.limit() * kSector) +
                          ". Make it larger, or detach and attach it if it is a file.");
}

std::vector<Answer> GrowingImage::overlay_of(const Run& run) const {
  Extent extent;
  extent.range = sectors_of(run.first, run.count);
  extent.read = run.read;
  extent.write = Side::at(run.dest, run.sector);
  extent.granule = static_cast<uint32_t>(block_sectors());
  extent.sync = request_.durability == Durability::always;
  Bitmap bitmap;
  bitmap.range = extent.range;
  bool any = false;
  bitmap.bits.resize((run.count + 7) / 8);
  for (uint64_t i = 0; i < run.count; i++) {
    const auto found = blocks_.find(run.first + i);
    if (found != blocks_.end() && found->second.state == Block::State::given) continue;
    bitmap.bits[i / 8] |= std::byte(1 << i % 8);
    any = true;
  }
  if (!any) bitmap.bits.clear();
  std::vector<Answer> answers;
  answers.emplace_back(extent);
  answers.emplace_back(std::move(bitmap));
  return answers;
}

Extent GrowingImage::plain_of(uint64_t block, const Block& at) const {
  Extent extent;
  extent.range = sectors_of(block, 1);
  extent.read = Side::at(at.dest, at.sector);
  if (begun_) extent.write = extent.read;
  extent.uncommitted = at.state == Block::State::given;
  extent.sync = request_.durability == Durability::always && at.state != Block::State::durable;
  return extent;
}

Task<std::vector<Answer>> GrowingImage::leaf(Range range) {
  const uint64_t first = range.sector / block_sectors();
  const uint64_t count = range.len / block_sectors();
  if (range.sector % block_sectors() != 0 || range.len % block_sectors() != 0 ||
      count > kLeafGranules)
    throw Error(EINVAL, top_.name() + ": the kernel asks for a leaf of a bitmap that is none.");
  const Asking asking(*this);
  Bitmap bitmap;
  bitmap.range = range;
  bitmap.bits.resize((count + 7) / 8);
  for (uint64_t i = 0; i < count;) {
    const std::vector<Piece> pieces = co_await tables_->find(sectors_of(first + i, count - i));
    for (const Piece& piece : pieces) {
      const uint64_t end = std::min(count, piece.range.end() / block_sectors() - first);
      for (; i < end; i++)
        if (piece.where == Where::here) bitmap.bits[i / 8] |= std::byte(1 << i % 8);
    }
  }
  for (auto found = blocks_.lower_bound(first);
       found != blocks_.end() && found->first < first + count; ++found) {
    const uint64_t i = found->first - first;
    if (found->second.state != Block::State::given) bitmap.bits[i / 8] |= std::byte(1 << i % 8);
  }
  co_return only(std::move(bitmap));
}

GrowingImage::Run* GrowingImage::run_of(uint64_t block) {
  auto found = runs_.upper_bound(block);
  if (found == runs_.begin()) return nullptr;
  --found;
  Run& run = found->second;
  return block < run.first + run.count ? &run : nullptr;
}

// --- promotions and commits -------------------------------------------------

void GrowingImage::promoted(const Promotion& promotion) {
  const Range range = promotion.range;
  const bool inside =
      range.len != 0 && range.sector < sectors() && range.len <= sectors() - range.sector;
  const uint64_t first = range.sector / block_sectors();
  // Of a block that was filled here the kernel may tell a part: all of it is there.
  const uint64_t skip = range.sector % block_sectors();
  const uint64_t count = (skip + range.len + block_sectors() - 1) / block_sectors();
  const uint64_t begin = promotion.dest_sector - skip;
  const uint64_t end = begin + count * block_sectors();
  const Home home = inside ? tables_->home_of(first) : Home{};
  Space* const space = space_of(promotion.dest);
  const bool adopted = promotion.replay || adopting_;
  if (!space || !inside || promotion.dest != home.dest || first + count > home.end ||
      promotion.dest_sector < skip + shape_.lead || end > space->limit() ||
      (!adopted && !space->is_given(begin - shape_.lead, end))) {
    misled_ = "sectors " + std::to_string(range.sector) + " to " + std::to_string(range.end());
    return;
  }
  if (adopted) space->used(begin - shape_.lead, end);
  for (uint64_t i = 0; i < count; i++) link(first + i, begin + i * block_sectors(), promotion);
}

void GrowingImage::link(uint64_t block, uint64_t sector, const Promotion& promotion) {
  const auto found = blocks_.find(block);
  if (found != blocks_.end() && found->second.sector != sector && !promotion.replay) {
    misled_ = "those of block " + std::to_string(block);
    return;
  }
  if (found == blocks_.end() || found->second.state == Block::State::durable)
    if (Run* run = run_of(block)) run->left++;
  blocks_[block] = {Block::State::linked, promotion.dest, sector, promotion.seq, false};
}

// The files that the blocks are in.
Task<> GrowingImage::flush_homes(const std::vector<Link>& links) {
  uint64_t end = 0;  // the first block that is not in what was flushed last
  for (const Link& each : links) {
    if (each.block < end) continue;
    const Home home = tables_->home_of(each.block);
    end = home.end;
    co_await own_.at(home.dest).disk->flush();
  }
}

Task<> GrowingImage::commit(uint64_t seq, bool data_flushed) {
  if (!misled_.empty())
    throw Error(EIO, top_.name() + ": the kernel said that " + misled_ +
                         " were written to a place that is not theirs. Nothing more is committed; "
                         "detach the disk and check the image ('cowctl check').");
  std::vector<Link> links;
  for (const auto& [block, at] : blocks_)
    if (at.state == Block::State::linked && at.seq <= seq) links.push_back({block, at.sector});
  if (links.empty()) co_return;
  std::exception_ptr failure;
  try {
    if (!data_flushed) co_await flush_homes(links);
    co_await tables_->link(links);
    co_await flush_homes(links);
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    failed_commits_++;
    std::rethrow_exception(failure);
  }
  commits_++;
  made_durable(links, seq);
}

void GrowingImage::made_durable(const std::vector<Link>& links, uint64_t seq) {
  for (const Link& each : links) {
    Block& block = blocks_.at(each.block);
    if (block.seq > seq) continue;  // told again meanwhile
    block.state = Block::State::durable;
    if (Run* run = run_of(each.block)) run->left--;
  }
  if (asking_ == 0) forget_durable();
}

void GrowingImage::forget_durable() {
  std::erase_if(blocks_,
                [](const auto& each) { return each.second.state == Block::State::durable; });
  std::erase_if(runs_, [](const auto& each) { return each.second.left == 0; });
}

// --- the rest ---------------------------------------------------------------

Task<std::vector<Answer>> GrowingImage::discard(Range range) {
  require_within(range);
  co_return std::vector<Answer>{};
}

Task<std::vector<Answer>> GrowingImage::zero(Range range) {
  require_within(range);
  adopting_ = false;
  co_await begin_writing();
  const bool nothing_to_do = co_await is_zero(range);
  if (nothing_to_do) co_return std::vector<Answer>{};
  co_return co_await write_answers(range);
}

Task<bool> GrowingImage::is_zero(Range range) {
  const Asking asking(*this);
  const uint64_t first = range.sector / block_sectors();
  const uint64_t last = (range.end() - 1) / block_sectors();
  while (range.len != 0) {
    const std::vector<Piece> pieces = co_await tables_->find(range);
    for (const Piece& piece : pieces)
      if (piece.where != Where::zero && (piece.where != Where::beneath || beneath_))
        co_return false;
    const uint64_t end = std::min(pieces.back().range.end(), range.end());
    range = {end, range.end() - end};
  }
  const auto given = blocks_.lower_bound(first);
  co_return given == blocks_.end() || given->first > last;
}

Task<std::vector<MapEntry>> GrowingImage::map(Range range) {
  require_within(range);
  const Asking asking(*this);
  std::vector<MapEntry> entries;
  for (Range rest = range; rest.len != 0;) {
    const std::vector<Piece> pieces = co_await tables_->find(rest);
    for (const Piece& piece : pieces) {
      MapEntry entry;
      entry.range = common(piece.range, rest);
      if (entry.range.len == 0) break;
      if (piece.where == Where::beneath && beneath_) {
        const std::vector<MapEntry> beneath = co_await beneath_->map(entry.range);
        entries.insert(entries.end(), beneath.begin(), beneath.end());
        continue;
      }
      entry.zero = piece.where == Where::zero || piece.where == Where::beneath;
      entry.data = !entry.zero;
      entry.present = piece.where != Where::beneath;
      entry.compressed = piece.where == Where::packed;
      entry.has_offset = piece.where == Where::here;
      if (entry.has_offset) {
        entry.offset = (piece.sector + entry.range.sector - piece.range.sector) * kSector;
        entry.disk = own_.at(piece.dest).disk->name();
      }
      MapEntry* last = entries.empty() ? nullptr : &entries.back();
      const bool goes_on =
          last && last->depth == 0 && last->present == entry.present && last->zero == entry.zero &&
          last->compressed == entry.compressed && last->has_offset == entry.has_offset &&
          last->disk == entry.disk &&
          (!entry.has_offset || last->offset + last->range.len * kSector == entry.offset);
      if (goes_on)
        last->range.len += entry.range.len;
      else
        entries.push_back(entry);
    }
    const uint64_t end = std::min(pieces.back().range.end(), range.end());
    rest = {end, range.end() - end};
  }
  co_return entries;
}

Task<> GrowingImage::preserve() {
  if (!read_only()) co_await commit(std::numeric_limits<uint64_t>::max(), false);
}

Task<> GrowingImage::close() {
  if (!read_only()) {
    co_await commit(std::numeric_limits<uint64_t>::max(), false);
    give_back_unused();
    std::vector<uint64_t> ends;
    for (uint32_t dest = 0; dest < own_.size(); dest++)
      ends.push_back(space_of(dest) ? space_of(dest)->next() : 0);
    co_await tables_->finish(ends);
    for (const Destination& each : own_)
      if (each.writable) co_await each.disk->flush();
    co_await top_.flush();
  }
  if (beneath_) co_await beneath_->close();
}

// What was given last and never written to.
void GrowingImage::give_back_unused() {
  std::map<std::pair<uint32_t, uint64_t>, uint64_t> unused;  // by the end: where it begins
  for (const auto& [block, at] : blocks_)
    if (at.state == Block::State::given) {
      const Range place = place_of(at.sector);
      unused[{at.dest, place.end()}] = place.sector;
    }
  for (auto last = unused.rbegin(); last != unused.rend(); ++last) {
    Space& space = *space_of(last->first.first);
    if (last->first.second == space.next()) space.give_back(last->second, last->first.second);
  }
}

std::vector<Image::Length> GrowingImage::used_lengths() const {
  return read_only() ? std::vector<Length>() : tables_->used_lengths();
}

nlohmann::json GrowingImage::stats() const {
  nlohmann::json json = tables_->stats();
  json["read_only"] = read_only();
  uint64_t used = 0, holes = 0;
  for (const auto& space : spaces_)
    if (space) {
      used += space->next() * kSector;
      holes += space->holes();
    }
  if (used == 0) return json;
  json["block_sectors"] = block_sectors();
  json["blocks_given"] = given_;
  json["blocks_filled"] = filled_;
  json["blocks_not_durable"] = blocks_.size();
  json["commits"] = commits_;
  json["failed_commits"] = failed_commits_;
  json["used_bytes"] = used;
  json["holes"] = holes;
  return json;
}

void GrowingImage::require_within(Range range) const {
  if (range.len == 0 || range.sector >= sectors() || range.len > sectors() - range.sector)
    throw Error(ERANGE, top_.name() + " has " + std::to_string(sectors()) + " sectors; " +
                            std::to_string(range.len) + " from " + std::to_string(range.sector) +
                            " on are not all in it.");
}

void require_sensible(const OpenRequest& request, const std::string& format) {
  const std::string& name = request.top->name();
  if (request.base)
    throw Error(EINVAL, name + " as a " + format +
                            " image names what lies beneath it itself, and " +
                            request.base->name() + " is given as a base: leave it out.");
  if (request.durability == Durability::transient)
    throw Error(EINVAL, name + " as a " + format +
                            " image keeps what is written to it and cannot be transient: use the "
                            "format dscow with it as base.");
  if (request.top->read_only() && !request.read_only)
    throw Error(EROFS, name +
                           " cannot be written to: make it writable, or attach the disk "
                           "read-only.");
}

}  // namespace cowd::growing
