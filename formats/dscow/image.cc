// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/dscow/image.hh"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/dscow/owner.hh"

namespace cowd::dscow {
namespace {

constexpr uint32_t kStore = 0;  // indices of destinations()
constexpr uint32_t kBase = 1;
constexpr size_t kMaxExtents = 64;  // in one answer of a store that is only read

}  // namespace

StoreImage::StoreImage(OpenRequest request, Headers headers, std::unique_ptr<Bits> bits,
                       bool read_only)
    : request_(std::move(request)),
      headers_(std::move(headers)),
      geometry_(headers_.current().geometry),
      regions_(regions_of(geometry_, headers_.current().base.size)),
      bits_(std::move(bits)),
      read_only_(read_only) {}

std::vector<Destination> StoreImage::destinations() const {
  std::vector<Destination> all{{request_.top.get(), !read_only_}};
  if (request_.base) all.push_back({request_.base.get(), false});
  return all;
}

std::vector<Answer> StoreImage::initial() const {
  if (read_only_) return {};
  return regions_in({0, sectors()});
}

Task<std::vector<Answer>> StoreImage::resolve(Range range, Access access) {
  require_within(range);
  if (access == Access::leaf) co_return co_await leaf(range);
  if (!read_only_) co_return regions_in(range);
  if (access == Access::write)
    throw Error(EROFS, request_.top->name() +
                           " is attached read-only: attach it for writing to write to it.");
  co_return co_await read_only_extents(range);
}

// Whole regions: an overlay's granules and leaves are counted from its beginning.
std::vector<Answer> StoreImage::regions_in(Range range) const {
  std::vector<Answer> answers;
  for (const Region& region : regions_) {
    const Range own = sectors_of(region.first, region.first + region.count);
    if (own.sector < range.end() && own.end() > range.sector) answers.push_back(extent_of(region));
  }
  return answers;
}

Extent StoreImage::extent_of(const Region& region) const {
  Extent extent;
  extent.range = sectors_of(region.first, region.first + region.count);
  extent.write = side_of(Where::store, region.first);
  if (region.kind == Region::Kind::edge) {
    extent.read = extent.write;
    return extent;
  }
  extent.read =
      side_of(region.kind == Region::Kind::over_base ? Where::base : Where::zero, region.first);
  extent.granule = static_cast<uint32_t>(granule_sectors());
  extent.sync = request_.durability == Durability::always;
  extent.is_volatile = request_.durability == Durability::transient;
  return extent;
}

Task<std::vector<Answer>> StoreImage::read_only_extents(Range range) {
  const uint64_t pages_end =
      round_up(round_up(range.end(), granule_sectors()) / granule_sectors(), kPageGranules);
  const uint64_t limit = std::min(geometry_.granules(), pages_end);
  std::vector<Answer> answers;
  uint64_t at = range.sector / granule_sectors();
  while (at < limit && answers.size() < kMaxExtents) {
    const Run run = co_await run_at(at, limit);
    Extent extent;
    extent.range = sectors_of(run.first, run.end);
    extent.read = side_of(run.where, run.first);
    answers.emplace_back(extent);
    at = run.end;
  }
  co_return answers;
}

Task<std::vector<Answer>> StoreImage::leaf(Range range) {
  const uint64_t first = range.sector / granule_sectors();
  const uint64_t end = range.end() / granule_sectors();
  const Region& region = region_at(first);
  if (range.sector % granule_sectors() != 0 || range.end() % granule_sectors() != 0 ||
      region.kind == Region::Kind::edge || end > region.first + region.count ||
      end - first > kPageGranules)
    throw Error(EINVAL,
                request_.top->name() + ": the kernel asks for a leaf of the bitmap that is none.");
  cowd::Bitmap answer;
  answer.range = range;
  answer.bits.resize((end - first + 7) / 8);
  // A leaf touches two pages where its overlay does not begin with a page.
  for (uint64_t at = first; at < end;) {
    const uint64_t page = at / kPageGranules;
    const uint64_t stop = std::min(end, (page + 1) * kPageGranules);
    if (bits_->any(page)) {
      const PagePtr bits = co_await bits_->bits(page);
      or_bits(answer.bits, at - first, *bits, at % kPageGranules, stop - at);
    }
    at = stop;
  }
  const uint64_t set = count_bits(answer.bits);
  answer.all = set == end - first;
  if (set == 0 || answer.all) answer.bits.clear();
  std::vector<Answer> answers;
  answers.emplace_back(std::move(answer));
  co_return answers;
}

void StoreImage::promoted(const Promotion& promotion) {
  const uint64_t first = promotion.range.sector / granule_sectors();
  const uint64_t count = promotion.range.len / granule_sectors();
  const bool whole = promotion.range.sector % granule_sectors() == 0 &&
                     promotion.range.len % granule_sectors() == 0;
  const bool inside = first < geometry_.granules() && count <= geometry_.granules() - first;
  if (read_only_ || !whole || !inside || promotion.dest != kStore ||
      promotion.dest_sector != geometry_.granule_offset(first) / 512) {
    misled_ = "sectors " + std::to_string(promotion.range.sector) + " to " +
              std::to_string(promotion.range.end());
    return;
  }
  bits_->add(first, count, promotion.seq);
}

Task<> StoreImage::commit(uint64_t seq, bool data_flushed) {
  if (!misled_.empty())
    throw Error(EIO, request_.top->name() + ": the kernel said that " + misled_ +
                         " were written to a place that is not theirs. Nothing more is committed; "
                         "detach the disk and check the store ('cowctl check').");
  co_await bits_->commit(seq, data_flushed);
}

// The overlays are served by the kernel itself; the edges stay where they are.
Task<std::vector<Answer>> StoreImage::discard(Range range) {
  require_within(range);
  co_return std::vector<Answer>{};
}

Task<std::vector<Answer>> StoreImage::zero(Range range) {
  co_return co_await resolve(range, Access::write);
}

Task<std::vector<MapEntry>> StoreImage::map(Range range) {
  require_within(range);
  std::vector<MapEntry> entries;
  const uint64_t limit = round_up(range.end(), granule_sectors()) / granule_sectors();
  for (uint64_t at = range.sector / granule_sectors(); at < limit;) {
    const Run run = co_await run_at(at, limit);
    entries.push_back(entry_of(run, range));
    at = run.end;
  }
  co_return entries;
}

Task<StoreImage::Run> StoreImage::run_at(uint64_t first, uint64_t limit) {
  const Region& region = region_at(first);
  const uint64_t end = std::min(limit, region.first + region.count);
  if (region.kind == Region::Kind::edge) co_return Run{Where::store, first, end};
  const Where beneath = region.kind == Region::Kind::over_base ? Where::base : Where::zero;
  Run run{beneath, first, first};
  while (run.end < end) {
    const uint64_t page = run.end / kPageGranules;
    const uint64_t stop = std::min(end, (page + 1) * kPageGranules);
    Where where = beneath;
    uint64_t to = stop;
    if (bits_->any(page)) {
      const PagePtr bits = co_await bits_->bits(page);
      const uint64_t offset = run.end % kPageGranules;
      if (get_bit(*bits, offset)) where = Where::store;
      to = run.end + run_end(*bits, offset, offset + stop - run.end) - offset;
    }
    if (run.end == first) run.where = where;
    if (where != run.where) break;
    run.end = to;
    if (run.end < stop) break;
  }
  co_return run;
}

MapEntry StoreImage::entry_of(const Run& run, Range within) const {
  MapEntry entry;
  const Range own = sectors_of(run.first, run.end);
  entry.range.sector = std::max(own.sector, within.sector);
  entry.range.len = std::min(own.end(), within.end()) - entry.range.sector;
  if (run.where == Where::zero) {
    entry.present = entry.data = false;
    entry.zero = true;
    return entry;
  }
  const bool store = run.where == Where::store;
  entry.depth = store ? 0 : 1;
  entry.has_offset = true;
  entry.offset =
      side_of(run.where, run.first).sector * 512 + (entry.range.sector - own.sector) * 512;
  entry.disk = (store ? request_.top : request_.base)->name();
  return entry;
}

// The header comes last: a crash before it leaves a transient store, as it was.
Task<> StoreImage::preserve() {
  if (read_only_) co_return;
  if (dynamic_cast<MemoryBits*>(bits_.get())) {
    auto durable = std::make_unique<DiskBits>(*request_.top, geometry_);
    co_await durable->load();
    // No suspension from here to the exchange: what is promoted later goes to the new one.
    static_cast<const MemoryBits&>(*bits_).copy_to(*durable);
    bits_ = std::move(durable);
  }
  co_await commit(std::numeric_limits<uint64_t>::max(), false);
  Header next = headers_.current();
  if (next.mode != Mode::transient) co_return;
  next.mode = Mode::flush;
  co_await headers_.write(*request_.top, next);
}

Task<> StoreImage::close() {
  if (read_only_) co_return;
  co_await commit(std::numeric_limits<uint64_t>::max(), false);
  co_await release(*request_.top, headers_);
}

nlohmann::json StoreImage::stats() const {
  nlohmann::json json = bits_->stats();
  json["granule"] = geometry_.granule;
  json["epoch"] = headers_.current().epoch;
  json["read_only"] = read_only_;
  json["mode"] = name_of(headers_.current().mode);
  return json;
}

Range StoreImage::sectors_of(uint64_t first, uint64_t end) const {
  const uint64_t sector = first * granule_sectors();
  return {sector, std::min(end * granule_sectors(), sectors()) - sector};
}

Side StoreImage::side_of(Where where, uint64_t granule) const {
  switch (where) {
    case Where::store: return Side::at(kStore, geometry_.granule_offset(granule) / 512);
    case Where::base: return Side::at(kBase, granule * granule_sectors());
    case Where::zero: break;
  }
  return Side::zeroes();
}

const Region& StoreImage::region_at(uint64_t granule) const {
  return *std::find_if(regions_.begin(), regions_.end(),
                       [granule](const Region& region) { return region.contains(granule); });
}

void StoreImage::require_within(Range range) const {
  if (range.len == 0 || range.sector >= sectors() || range.len > sectors() - range.sector)
    throw Error(ERANGE, request_.top->name() + " has " + std::to_string(sectors()) + " sectors; " +
                            std::to_string(range.len) + " from " + std::to_string(range.sector) +
                            " on are not all in it.");
}

}  // namespace cowd::dscow
