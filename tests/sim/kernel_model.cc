// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/sim/kernel_model.hh"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "formats/common/whole_blocks.hh"

namespace cowd::sim {
namespace {

constexpr uint64_t kSector = 512;
constexpr uint64_t kLeafGranules = 32768;

std::logic_error wrong(const std::string& what, Range range) {
  return std::logic_error(what + ": sectors " + std::to_string(range.sector) + " to " +
                          std::to_string(range.end()));
}

bool overlap(Range a, Range b) { return a.sector < b.end() && b.sector < a.end(); }

bool is_overlay(const Extent& extent) { return extent.granule != 0; }

Side ahead(Side side, uint64_t sectors) {
  if (side.kind == Side::Kind::disk) side.sector += sectors;
  return side;
}

Extent part_of(const Extent& whole, uint64_t start, uint64_t end) {
  Extent part = whole;
  part.range = {start, end - start};
  part.read = ahead(whole.read, start - whole.range.sector);
  part.write = ahead(whole.write, start - whole.range.sector);
  return part;
}

uint32_t flags_of(const Extent& extent) {
  return (extent.granule ? 1u : 0u) | (extent.sync ? 2u : 0u) | (extent.uncommitted ? 4u : 0u) |
         (extent.is_volatile ? 8u : 0u);
}

Range range_of(const Answer& answer) {
  return std::visit([](const auto& each) { return each.range; }, answer);
}

// Takes its entry off the list when it goes out of scope.
template <typename T>
class Listed {
 public:
  Listed(std::list<T>& list, T value) : list_(list), at_(list.insert(list.end(), value)) {}
  ~Listed() { list_.erase(at_); }
  T& value() const { return *at_; }
  Listed(const Listed&) = delete;
  Listed& operator=(const Listed&) = delete;

 private:
  std::list<T>& list_;
  typename std::list<T>::iterator at_;
};

struct Raised {
  int& value;
  explicit Raised(int& counter) : value(counter) { ++value; }
  ~Raised() { --value; }
  Raised(const Raised&) = delete;
  Raised& operator=(const Raised&) = delete;
};

}  // namespace

// --- life -------------------------------------------------------------------------------

Task<> KernelModel::attach() {
  auto drop_in = [this](Range range) -> Task<> { co_await invalidate(range); };
  image_ = co_await open_(false, drop_in);
  require_whole_blocks(*image_);
  open_done();
}

void KernelModel::open_done() {
  destinations_ = image_->destinations();
  sectors_ = image_->sectors();
  for (Answer& answer : image_->initial())
    if (auto* extent = std::get_if<Extent>(&answer)) install(*extent, false, extent->range, false);
}

Task<> KernelModel::reattach() {
  image_.reset();
  auto drop_in = [this](Range range) -> Task<> { co_await invalidate(range); };
  image_ = co_await open_(true, drop_in);
  for (Uncommitted& each : uncommitted_) {
    each.told.replay = true;
    each.unread = false;
    each.closed = true;
    image_->promoted(each.told);
  }
  if (image_->forgets_on_reattach()) drop({0, image_->sectors()});
  open_done();
}

Task<> KernelModel::detach() {
  tell();
  if (last_seq() != 0) co_await commit(seq_, false);
  co_await image_->close();
  die();
}

void KernelModel::die() {
  image_.reset();
  extents_.clear();
  uncommitted_.clear();
  destinations_.clear();
}

Task<> KernelModel::turn() {
  auto executor = co_await boost::asio::this_coro::executor;
  co_await boost::asio::post(executor, boost::asio::use_awaitable);
}

// --- what is kept -----------------------------------------------------------------------

KernelModel::KeptPtr KernelModel::find(uint64_t sector, uint64_t* next) {
  auto at = extents_.upper_bound(sector);
  *next = at == extents_.end() ? UINT64_MAX : at->first;
  if (at == extents_.begin()) return nullptr;
  --at;
  return sector < at->second->map.range.end() ? at->second : nullptr;
}

size_t KernelModel::overlays() const {
  size_t count = 0;
  for (const auto& [start, kept] : extents_) count += is_overlay(kept->map);
  return count;
}

// The first granule behind the leaf that `granule` is in, from the overlay's beginning.
uint64_t KernelModel::end_of_leaf(const Kept& kept, uint64_t granule) {
  const uint64_t end = (granule / kLeafGranules + 1) * kLeafGranules;
  return std::min<uint64_t>(kept.bits.size(), end);
}

void KernelModel::forget() {
  for (auto at = extents_.begin(); at != extents_.end();) {
    Kept& kept = *at->second;
    const bool used = std::ranges::any_of(
        uses_, [&](const Use& use) { return overlap(use.range, kept.map.range); });
    if (used || random_() % 3 == 0) {
      ++at;
    } else if (is_overlay(kept.map)) {
      // A leaf with uncommitted bits stays.
      const uint64_t size = kLeafGranules * kept.map.granule;
      for (uint64_t leaf = 0; leaf < kept.known.size(); leaf++) {
        const Range own{kept.map.range.sector + leaf * size, size};
        const bool needed = std::ranges::any_of(uncommitted_, [&](const Uncommitted& each) {
          return overlap(each.told.range, own);
        });
        if (!needed) kept.known[leaf] = false;
      }
      ++at;
    } else {
      at = extents_.erase(at);
    }
  }
}

void KernelModel::drop(Range range) {
  for (auto at = extents_.begin(); at != extents_.end();) {
    Kept& kept = *at->second;
    const Range own = kept.map.range;
    if (!overlap(own, range)) {
      ++at;
    } else if (is_overlay(kept.map) && (own.sector < range.sector || own.end() > range.end())) {
      std::fill(kept.known.begin(), kept.known.end(), false);
      ++at;
    } else {
      at = extents_.erase(at);
    }
  }
  dropped_[++gen_] = range;
}

Task<> KernelModel::invalidate(Range range) {
  if (range.len == 0 || range.end() > sectors_)
    throw wrong("an invalidation is not in the disk", range);
  drop(range);
  co_await drained(range);
}

Task<> KernelModel::drained(Range range) {
  const Raised raised(invalidating_);
  co_await turn();
  auto unused = [&] {
    return std::ranges::none_of(
        uses_, [&](const Use& use) { return !use.parked && overlap(use.range, range); });
  };
  co_await until(unused, "the I/O under a dropped extent");
  tell();
}

// --- faults -----------------------------------------------------------------------------

Task<> KernelModel::ask(Range range, Access access) {
  faults_++;
  const uint64_t gen = gen_;
  data_.reset();
  tell();
  std::vector<Answer> answers = co_await image_->resolve(range, access);
  take(std::move(answers), range, access, gen);
}

Range KernelModel::leaf_of(const KeptPtr& overlay, uint64_t sector) {
  const uint64_t size = kLeafGranules * overlay->map.granule;
  const Range whole = overlay->map.range;
  const uint64_t start = whole.sector + (sector - whole.sector) / size * size;
  return {start, std::min(size, whole.end() - start)};
}

Task<> KernelModel::ask_leaf(KeptPtr overlay, uint64_t sector) {
  faults_++;
  const Range leaf = leaf_of(overlay, sector);
  const uint64_t gen = gen_;
  tell();
  std::vector<Answer> answers = co_await image_->resolve(leaf, Access::leaf);
  for (const auto& [when, range] : dropped_)
    if (when > gen && overlap(range, leaf)) co_return;
  for (const Answer& answer : answers) {
    const auto* bitmap = std::get_if<Bitmap>(&answer);
    if (!bitmap) continue;
    if (!(bitmap->range == leaf)) throw wrong("the bits are not of the leaf asked for", leaf);
    load_bits(*bitmap);
    co_return;
  }
  throw wrong("no bits for a leaf", leaf);
}

// As Session and the kernel do: one answer is for the id, the others are pushed.
void KernelModel::take(std::vector<Answer> answers, Range asked, Access access, uint64_t gen) {
  bool stale = false, asked_again = false;
  for (const auto& [when, range] : dropped_) {
    if (when <= gen) continue;
    stale = true;
    asked_again |= overlap(range, asked);
  }
  const Answer* main = nullptr;
  for (const Answer& answer : answers) {
    const Range covers = range_of(answer);
    if (!main && covers.sector <= asked.sector && asked.sector < covers.end()) main = &answer;
  }
  if (!main) throw wrong("no answer for a fault", asked);
  bool overlay = false;
  if (const auto* extent = std::get_if<Extent>(main)) overlay = is_overlay(*extent);
  const bool pushes = invalidating_ == 0;
  const auto push = [&](const Answer& answer) {
    if (&answer == main || !pushes) return;
    if (const auto* bitmap = std::get_if<Bitmap>(&answer)) load_bits(*bitmap);
    if (const auto* extent = std::get_if<Extent>(&answer)) install(*extent, false, asked, false);
  };
  const auto is_after = [&](const Answer& answer) {
    return overlay || std::holds_alternative<Bitmap>(answer);
  };
  for (const Answer& answer : answers)
    if (!is_after(answer)) push(answer);
  if (!asked_again) {
    if (const auto* extent = std::get_if<Extent>(main)) {
      const Side& side = access == Access::write ? extent->write : extent->read;
      if (side.kind == Side::Kind::none) throw wrong("the answer lacks the side asked for", asked);
      install(*extent, true, asked, stale);
    } else if (const auto* data = std::get_if<Data>(main)) {
      if (access != Access::read) throw wrong("bytes for a write", asked);
      if (data->range.sector != asked.sector || data->bytes.size() != data->range.len * kSector ||
          data->bytes.size() > 4 << 20)
        throw wrong("the bytes do not begin where they are asked for, or are too many", asked);
      data_answers_++;
      data_ = *data;
    } else {
      throw wrong("bits for a fault", asked);
    }
  }
  for (const Answer& answer : answers)
    if (is_after(answer)) push(answer);
}

void KernelModel::check(const Extent& extent) const {
  const Range range = extent.range;
  if (range.len == 0 || range.end() > sectors_ || range.end() < range.sector)
    throw wrong("an extent is not in the disk", range);
  // Nothing smaller than a block of any of them can be read or written.
  uint64_t block = 1;
  for (const Destination& each : destinations_)
    block = std::max<uint64_t>(block, each.disk->block_size() / kSector);
  if (range.sector % block || range.end() % block || extent.granule % block)
    throw wrong("an extent that is not of whole blocks", range);
  for (const bool write : {false, true}) {
    const Side& side = write ? extent.write : extent.read;
    if (side.kind == Side::Kind::zero && write) throw wrong("a write side of zeroes", range);
    if (side.kind != Side::Kind::disk) continue;
    if (side.dest >= destinations_.size()) throw wrong("no such destination", range);
    if (write && !destinations_[side.dest].writable) throw wrong("a read-only destination", range);
    const uint64_t sectors = disk(side.dest).size() / kSector;
    if (side.sector > sectors || range.len > sectors - side.sector)
      throw wrong("beyond the end of a destination", range);
    if (side.sector % block) throw wrong("a side that is not aligned to its blocks", range);
  }
  const bool none = extent.write.kind == Side::Kind::none;
  if (none && (extent.uncommitted || extent.sync || extent.read.kind == Side::Kind::none))
    throw wrong("an extent without sides, or with flags of a write side", range);
  if (!is_overlay(extent)) return;
  if (none || extent.read.kind == Side::Kind::none) throw wrong("an overlay without a side", range);
  if ((extent.granule & (extent.granule - 1)) != 0 || range.len % extent.granule != 0)
    throw wrong("an overlay not of whole granules", range);
}

// The rules of dmu_extent_install().
void KernelModel::install(Extent extent, bool answer, Range asked, bool stale) {
  check(extent);
  const bool plain = !is_overlay(extent);
  const bool orphan = has_orphan(extent.range);
  if (orphan && (!answer || !plain)) return;  // asked again
  if (answer && plain && (stale || orphan)) {
    const uint64_t start = std::max(extent.range.sector, asked.sector);
    extent = part_of(extent, start, std::min(extent.range.end(), asked.end()));
  }
  if (plain && extent.uncommitted &&
      !clip_to_hole(extent, answer ? asked.sector : extent.range.sector))
    return;
  if (answer && extent.write.kind != Side::Kind::none) cut(extent.range);
  if (plain) {
    fill(extent);
    if (extent.uncommitted) remember(extent, extent.range);
    return;
  }
  for (const auto& [start, kept] : extents_) {
    if (!overlap(kept->map.range, extent.range)) continue;
    const Extent& there = kept->map;
    const bool same = there.range == extent.range && there.granule == extent.granule &&
                      there.read == extent.read && there.write == extent.write &&
                      flags_of(there) == flags_of(extent);
    if (same || !answer) return;
    throw wrong("an overlay that is not in a hole (EBUSY)", extent.range);
  }
  auto kept = std::make_shared<Kept>();
  kept->map = extent;
  kept->bits.resize(extent.range.len / extent.granule);
  kept->known.resize((kept->bits.size() + kLeafGranules - 1) / kLeafGranules);
  extents_[extent.range.sector] = kept;
}

// A first write goes on there under an overlay that was dropped.
bool KernelModel::has_orphan(Range range) const {
  return std::ranges::any_of(uses_, [&](const Use& use) {
    if (!use.promotes || !overlap(use.range, range)) return false;
    const auto found = extents_.find(use.promotes->map.range.sector);
    return found == extents_.end() || found->second != use.promotes;
  });
}

// An UNCOMMITTED plain extent is promoted as far as nothing else may be written there.
bool KernelModel::clip_to_hole(Extent& extent, uint64_t at) {
  uint64_t start = extent.range.sector, end = extent.range.end();
  for (const auto& [first, kept] : extents_) {
    const Range own = kept->map.range;
    if (!overlap(own, extent.range) || kept->map.write.kind == Side::Kind::none) continue;
    if (own.sector <= at && at < own.end()) return false;
    if (own.sector > at)
      end = std::min(end, own.sector);
    else
      start = std::max(start, own.end());
  }
  extent = part_of(extent, start, end);
  return true;
}

void KernelModel::cut(Range range) {
  std::vector<Extent> pieces;
  for (auto at = extents_.begin(); at != extents_.end();) {
    const Extent map = at->second->map;
    if (!overlap(map.range, range) || is_overlay(map) || map.write.kind != Side::Kind::none) {
      ++at;
      continue;
    }
    if (map.range.sector < range.sector)
      pieces.push_back(part_of(map, map.range.sector, range.sector));
    if (map.range.end() > range.end()) pieces.push_back(part_of(map, range.end(), map.range.end()));
    at = extents_.erase(at);
  }
  for (const Extent& piece : pieces) fill(piece);
}

// The parts of a plain extent that are in holes.
void KernelModel::fill(const Extent& extent) {
  uint64_t at = extent.range.sector;
  while (at < extent.range.end()) {
    uint64_t next;
    if (const KeptPtr other = find(at, &next)) {
      at = other->map.range.end();
      continue;
    }
    const uint64_t end = std::min(next, extent.range.end());
    auto piece = std::make_shared<Kept>();
    piece->map = part_of(extent, at, end);
    extents_[at] = piece;
    at = end;
  }
}

void KernelModel::load_bits(const Bitmap& bitmap) {
  uint64_t next;
  const KeptPtr kept = find(bitmap.range.sector, &next);
  if (!kept || !is_overlay(kept->map)) return;  // dropped meanwhile
  const Range whole = kept->map.range;
  const uint64_t granules = bitmap.range.len / kept->map.granule;
  const uint64_t first = (bitmap.range.sector - whole.sector) / kept->map.granule;
  if ((bitmap.range.sector - whole.sector) % (kLeafGranules * kept->map.granule) != 0 ||
      first + granules > kept->bits.size() || granules > kLeafGranules)
    throw wrong("bits of what is no leaf", bitmap.range);
  if (!bitmap.bits.empty() && bitmap.bits.size() != (granules + 7) / 8)
    throw wrong("too few or too many bits for a leaf", bitmap.range);
  const uint64_t leaf = first / kLeafGranules;
  for (uint64_t i = 0; i < granules; i++) {
    if (!kept->known[leaf]) kept->bits[first + i] = false;
    if (bitmap.all ||
        (!bitmap.bits.empty() && std::to_integer<unsigned>(bitmap.bits[i / 8]) >> (i % 8) & 1))
      kept->bits[first + i] = true;
  }
  // What was promoted and not committed the kernel knows better.
  for (const Uncommitted& each : uncommitted_)
    for (uint64_t i = 0; i < granules; i++) {
      const uint64_t sector = whole.sector + (first + i) * kept->map.granule;
      if (each.told.range.sector <= sector && sector < each.told.range.end() &&
          each.told.dest == kept->map.write.dest &&
          each.told.dest_sector + (sector - each.told.range.sector) ==
              kept->map.write.sector + (sector - whole.sector) &&
          !kept->bits[first + i])
        throw wrong("the bits of a leaf lack what was promoted", bitmap.range);
    }
  kept->known[leaf] = true;
}

// --- promotions -------------------------------------------------------------------------

// The seq of what was promoted.
uint64_t KernelModel::remember(const Extent& extent, Range range) {
  Promotion told;
  told.range = range;
  told.dest = extent.write.dest;
  told.dest_sector = ahead(extent.write, range.sector - extent.range.sector).sector;
  told.seq = extent.is_volatile ? 0 : ++seq_;
  remembered();
  if (!uncommitted_.empty()) {
    Uncommitted& last = uncommitted_.back();
    if (last.unread && !last.closed && last.flags == flags_of(extent) &&
        last.told.range.end() == range.sector && last.told.dest == told.dest &&
        last.told.dest_sector + last.told.range.len == told.dest_sector) {
      last.told.range.len += range.len;
      last.told.seq = told.seq;
      return told.seq;
    }
  }
  uncommitted_.push_back({told, flags_of(extent), true, extent.sync});
  return told.seq;
}

bool KernelModel::has_untold() const {
  return std::ranges::any_of(uncommitted_, &Uncommitted::unread);
}

uint64_t KernelModel::last_seq() const {
  uint64_t last = 0;
  for (const Uncommitted& each : uncommitted_) last = std::max(last, each.told.seq);
  return last;
}

void KernelModel::committed(uint64_t seq) {
  std::erase_if(uncommitted_, [seq](const Uncommitted& each) {
    return each.told.seq != 0 && each.told.seq <= seq;
  });
}

void KernelModel::tell() {
  for (Uncommitted& each : uncommitted_) {
    if (!each.unread) continue;
    each.unread = false;
    image_->promoted(each.told);
  }
}

Task<> KernelModel::commit(uint64_t seq, bool data_flushed) {
  auto free = [this] { return !committing_; };
  co_await until(free, "a commit");
  committing_ = true;
  std::exception_ptr failure;
  try {
    co_await image_->commit(seq, data_flushed);
  } catch (...) {
    failure = std::current_exception();
  }
  committing_ = false;
  if (failure) std::rethrow_exception(failure);
  committed(seq);
}

Task<> KernelModel::done(const Extent&, Range, uint64_t) {
  tell();
  co_await commit(seq_, false);
}

// --- I/O --------------------------------------------------------------------------------

Task<Bytes> KernelModel::read(uint64_t sector, uint64_t count) {
  Bytes bytes(count * kSector);
  uint64_t at = sector;
  const uint64_t end = sector + count;
  while (at < end) {
    uint64_t next;
    const KeptPtr kept = find(at, &next);
    const auto out = std::span<std::byte>(bytes).subspan((at - sector) * kSector);
    if (!kept) {
      const Range asked{at, std::min(end, next) - at};
      co_await ask(asked, Access::read);
      // DATA serves this bio and is not kept.
      if (data_ && data_->range.sector == at) {
        const uint64_t len = std::min(data_->range.len, end - at);
        std::copy_n(data_->bytes.begin(), len * kSector, out.begin());
        at += len;
        data_.reset();
      }
      continue;
    }
    const Extent map = kept->map;
    uint64_t len = std::min(end, map.range.end()) - at;
    Side side = map.read;
    if (is_overlay(map)) {
      const uint64_t granule = (at - map.range.sector) / map.granule;
      if (!kept->known[granule / kLeafGranules]) {
        co_await ask_leaf(kept, at);
        continue;
      }
      const uint64_t leaf_end = end_of_leaf(*kept, granule);
      uint64_t stop = granule + 1;
      while (stop < leaf_end && kept->bits[stop] == kept->bits[granule]) stop++;
      len = std::min(len, map.range.sector + stop * map.granule - at);
      if (kept->bits[granule]) side = map.write;
    }
    if (side.kind == Side::Kind::none) {
      co_await ask({at, len}, Access::read);
      continue;
    }
    if (side.kind == Side::Kind::disk) {
      const Listed<Use> use(uses_, Use{{at, len}, nullptr});
      const uint64_t from = ahead(side, at - map.range.sector).sector;
      Disk& source = disk(side.dest);
      co_await source.read_at(from * kSector, out.first(len * kSector));
    }
    at += len;
  }
  co_return bytes;
}

Task<> KernelModel::write(uint64_t sector, std::span<const std::byte> data) {
  while (!data.empty()) {
    const uint64_t done = co_await write_some(sector, data);
    sector += done;
    data = data.subspan(done * kSector);
    if (random_() % 8 == 0) tell();
  }
}

// How many sectors were written; 0: something was asked.
Task<uint64_t> KernelModel::write_some(uint64_t sector, std::span<const std::byte> data) {
  uint64_t next;
  const uint64_t end = sector + data.size() / kSector;
  const KeptPtr kept = find(sector, &next);
  if (!kept) {
    co_await ask({sector, std::min(end, next) - sector}, Access::write);
    co_return 0;
  }
  const Extent map = kept->map;
  const uint64_t len = std::min(end, map.range.end()) - sector;
  if (is_overlay(map)) {
    const uint64_t granule = (sector - map.range.sector) / map.granule;
    if (!kept->known[granule / kLeafGranules]) {
      co_await ask_leaf(kept, sector);
      co_return 0;
    }
    if (!kept->bits[granule]) {
      const uint64_t promoted = co_await promote(kept, sector, data.first(len * kSector));
      co_return promoted;
    }
  }
  uint64_t count = len;
  if (is_overlay(map)) {
    uint64_t stop = (sector - map.range.sector) / map.granule + 1;
    const uint64_t leaf_end = end_of_leaf(*kept, stop - 1);
    while (stop < leaf_end && kept->bits[stop]) stop++;
    count = std::min(len, map.range.sector + stop * map.granule - sector);
  }
  if (map.write.kind == Side::Kind::none) {
    co_await ask({sector, count}, Access::write);
    co_return 0;
  }
  {
    const Listed<Use> use(uses_, Use{{sector, count}});
    const uint64_t to = ahead(map.write, sector - map.range.sector).sector;
    const bool there = co_await put(use.value(), map.write.dest, to, data.first(count * kSector));
    if (!there) co_return 0;
  }
  if (map.sync && !is_overlay(map)) co_await done(map, {sector, count}, 0);
  co_return count;
}

// A first write: of the granules from `sector` on that are free and not promoted.
Task<uint64_t> KernelModel::promote(const KeptPtr& kept, uint64_t sector,
                                    std::span<const std::byte> data) {
  const Extent map = kept->map;
  const uint64_t first = (sector - map.range.sector) / map.granule;
  const uint64_t start = map.range.sector + first * map.granule;
  const uint64_t wanted = sector + data.size() / kSector;
  const auto busy = [&](Range range) {
    return std::ranges::any_of(
        uses_, [&](const Use& use) { return use.promotes && overlap(use.range, range); });
  };
  const uint64_t leaf_end = end_of_leaf(*kept, first);
  uint64_t stop = first;
  while (stop < leaf_end && !kept->bits[stop] &&
         map.range.sector + stop * map.granule < wanted &&
         !busy({map.range.sector + stop * map.granule, map.granule}))
    stop++;
  if (stop == first) {
    co_await turn();
    co_return 0;
  }
  const Range range{start, (stop - first) * map.granule};
  const uint64_t count = std::min(wanted, range.end()) - sector;
  uint64_t seq;
  {
    const Listed<Use> use(uses_, Use{range, kept});
    const Range head{range.sector, sector - range.sector};
    const Range tail{sector + count, range.end() - sector - count};
    bool there = co_await copy(use.value(), map, head);
    if (there) there = co_await copy(use.value(), map, tail);
    const uint64_t to = ahead(map.write, sector - map.range.sector).sector;
    if (there) there = co_await put(use.value(), map.write.dest, to, data.first(count * kSector));
    if (!there) co_return 0;
    for (uint64_t i = first; i < stop; i++) kept->bits[i] = true;
    seq = remember(map, range);
  }
  if (map.sync) co_await done(map, range, seq);
  co_return count;
}

Task<bool> KernelModel::copy(Use& use, const Extent& map, Range range) {
  if (range.len == 0) co_return true;
  copied_ += range.len;
  Bytes bytes(range.len * kSector);
  if (map.read.kind == Side::Kind::disk) {
    Disk& source = disk(map.read.dest);
    const uint64_t from = ahead(map.read, range.sector - map.range.sector).sector;
    co_await source.read_at(from * kSector, bytes);
  }
  const uint64_t to = ahead(map.write, range.sector - map.range.sector).sector;
  const bool there = co_await put(use, map.write.dest, to, bytes);
  co_return there;
}

Task<bool> KernelModel::put(Use&, uint32_t dest, uint64_t sector, std::span<const std::byte> data) {
  Disk& target = disk(dest);
  co_await target.write_at(sector * kSector, data);
  co_return true;
}

Task<> KernelModel::flush() {
  for (const Uncommitted& each : uncommitted_) const_cast<Uncommitted&>(each).closed = true;
  const uint64_t seq = last_seq();
  for (const Destination& each : destinations_)
    if (each.writable) co_await each.disk->flush();
  if (seq == 0) co_return;
  tell();
  co_await commit(seq, true);
}

Task<> KernelModel::timer() {
  tell();
  if (last_seq() != 0) co_await commit(seq_, false);
}

// Where no overlay serves it the image is asked; in an overlay nothing is done.
Task<> KernelModel::discard(Range range) {
  for (uint64_t at = range.sector; at < range.end();) {
    uint64_t next;
    const KeptPtr kept = find(at, &next);
    if (kept && is_overlay(kept->map)) {
      at = kept->map.range.end();
      continue;
    }
    const uint64_t end =
        kept ? std::min(range.end(), kept->map.range.end()) : std::min(range.end(), next);
    const Range part{at, end - at};
    co_await ask_discard(part);
    at = end;
  }
}

Task<> KernelModel::ask_discard(Range range) {
  tell();
  const std::vector<Answer> answers = co_await image_->discard(range);
  if (!answers.empty() && (!std::holds_alternative<Extent>(answers[0]) ||
                           std::get<Extent>(answers[0]).write.kind == Side::Kind::none))
    throw wrong("a discard is answered without a write side", range);
}

// Where the write side is known zeroes are written; else the image may do it.
Task<> KernelModel::zero(Range range) {
  while (range.len) {
    uint64_t next;
    const KeptPtr kept = find(range.sector, &next);
    if (kept && kept->map.write.kind != Side::Kind::none) {
      const uint64_t len = std::min(range.end(), kept->map.range.end()) - range.sector;
      const Bytes zeroes(len * kSector);
      const uint64_t done = co_await write_some(range.sector, zeroes);
      range = {range.sector + done, range.len - done};
      continue;
    }
    const uint64_t end = std::min(range.end(), kept ? kept->map.range.end() : next);
    const Range part{range.sector, end - range.sector};
    const bool zeroed = co_await ask_zero(part);
    if (zeroed) range = {end, range.end() - end};
  }
}

Task<bool> KernelModel::ask_zero(Range range) {
  const uint64_t gen = gen_;
  tell();
  const std::vector<Answer> answers = co_await image_->zero(range);
  if (answers.empty()) {
    drop(range);
    co_return true;
  }
  take(answers, range, Access::write, gen);
  co_return false;
}

// --- the guest --------------------------------------------------------------------------

Guest::Guest(KernelModel& kernel, uint64_t sectors, std::vector<std::byte> beneath)
    : kernel_(&kernel), sectors_(sectors), beneath_(std::move(beneath)) {
  beneath_.resize(sectors * kSector);
}

void Guest::set(Range range, What what) {
  for (uint64_t at = range.sector; at < range.end(); at++) {
    std::vector<Version>& all = history_[at];
    if (all.empty()) all.push_back({});
    all.push_back({next_, what});
  }
  open_.insert(next_++);
}

Bytes Guest::content(uint64_t sector, const Version& version) const {
  Bytes bytes(kSector);
  if (version.what != What::data) return bytes;
  if (version.number == 0) {
    std::copy_n(beneath_.begin() + static_cast<ptrdiff_t>(sector * kSector), kSector,
                bytes.begin());
    return bytes;
  }
  uint64_t value = sector * 0x9e3779b97f4a7c15 + version.number;
  for (size_t i = 0; i < kSector; i += 8) {
    value = (value ^ value >> 29) * 0xbf58476d1ce4e5b9 + 1;
    std::memcpy(bytes.data() + i, &value, 8);
  }
  return bytes;
}

const std::vector<Guest::Version>& Guest::versions(uint64_t sector) const {
  static const std::vector<Version> never{{}};
  const auto found = history_.find(sector);
  return found == history_.end() ? never : found->second;
}

// A discard leaves zeroes or what was there, which may have been discarded before.
bool Guest::fits(uint64_t sector, const std::vector<Version>& versions, size_t at,
                 std::span<const std::byte> bytes) const {
  for (;; at--) {
    const Bytes wanted = content(sector, versions[at]);
    if (std::ranges::equal(wanted, bytes)) return true;
    if (versions[at].what != What::discard) return false;
  }
}

std::string Guest::described(uint64_t sector, std::span<const std::byte> bytes) const {
  const std::vector<Version>& known = versions(sector);
  for (size_t at = known.size(); at-- > 0;)
    if (std::ranges::equal(content(sector, known[at]), bytes))
      return at == 0 ? "what was beneath" : "write " + std::to_string(known[at].number);
  const bool empty =
      std::ranges::all_of(bytes, [](std::byte each) { return each == std::byte{0}; });
  return empty ? "zeroes" : "what nobody wrote there";
}

Task<> Guest::write(Range range) {
  const uint64_t number = next_;
  Bytes data;
  for (uint64_t at = range.sector; at < range.end(); at++) {
    const Bytes one = content(at, {number, What::data});
    data.insert(data.end(), one.begin(), one.end());
  }
  set(range, What::data);
  co_await kernel_->write(range.sector, data);
  open_.erase(number);
}

Task<> Guest::zero(Range range) {
  const uint64_t number = next_;
  set(range, What::zero);
  co_await kernel_->zero(range);
  open_.erase(number);
}

Task<> Guest::discard(Range range) {
  const uint64_t number = next_;
  set(range, What::discard);
  co_await kernel_->discard(range);
  open_.erase(number);
}

Task<> Guest::flush() {
  const Mark covered{next_, open_};
  co_await kernel_->flush();
  marks_.push_back(covered);
  if (log_) log_->mark(marks_.size() - 1);
}

Task<> Guest::verify(Range range) {
  const Bytes all = co_await kernel_->read(range.sector, range.len);
  for (uint64_t i = 0; i < range.len; i++) {
    const std::vector<Version>& known = versions(range.sector + i);
    const auto bytes = std::span<const std::byte>(all).subspan(i * kSector, kSector);
    if (!fits(range.sector + i, known, known.size() - 1, bytes))
      throw wrong("the guest reads " + described(range.sector + i, bytes) + ", not write " +
                      std::to_string(known.back().number) + ", at the first of",
                  {range.sector + i, range.len - i});
  }
}

Task<> Guest::verify_crash(KernelModel& found, uint64_t mark) const {
  const Bytes all = co_await found.read(0, sectors_);
  for (uint64_t sector = 0; sector < sectors_; sector++) {
    const std::vector<Version>& known = versions(sector);
    size_t oldest = 0;
    const Mark& flushed = marks_.at(mark);
    while (oldest + 1 < known.size() && known[oldest + 1].number < flushed.below &&
           !flushed.open.count(known[oldest + 1].number))
      oldest++;
    const auto bytes = std::span<const std::byte>(all).subspan(sector * kSector, kSector);
    bool fine = false;
    for (size_t at = oldest; at < known.size(); at++) fine |= fits(sector, known, at, bytes);
    if (!fine)
      throw wrong("after the crash the guest reads " + described(sector, bytes) +
                      ", not one of writes " + std::to_string(known[oldest].number) + " to " +
                      std::to_string(known.back().number) + ", at the first of",
                  {sector, sectors_ - sector});
  }
}

Bytes Guest::expected() const {
  Bytes all;
  for (uint64_t sector = 0; sector < sectors_; sector++) {
    const Bytes one = content(sector, versions(sector).back());
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

}  // namespace cowd::sim
