// SPDX-License-Identifier: GPL-2.0-or-later
// What is where on the disk, and the small functions of an image.
#include "formats/qcow2/image.hh"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/error.hh"

namespace cowd::qcow2 {
namespace {

constexpr size_t kMaxPieces = 64;  // in one answer
constexpr int kPagesAhead = 16;    // of a run: 512 MiB with clusters of 64 KiB

}  // namespace

Qcow2Image::Qcow2Image(OpenRequest request, std::unique_ptr<Header> header,
                       std::shared_ptr<Disk> data_file, std::unique_ptr<Beneath> beneath,
                       std::vector<uint64_t> l1)
    : request_(std::move(request)),
      header_(std::move(header)),
      data_file_(std::move(data_file)),
      beneath_(std::move(beneath)),
      l1_(std::move(l1)),
      pages_(*request_.top, header_->page(), request_.metadata_cache),
      unmappable_(header_->granule() <
                  std::max({data_disk().block_size(), request_.top->block_size(),
                            beneath_ ? beneath_->block_size() : 0})) {}

// Free clusters must not be what the header, the L1 table or L2 tables are in.
Task<> Qcow2Image::load_refcounts() {
  refcounts_ = std::make_unique<Refcounts>(*request_.top, *header_, pages_);
  co_await refcounts_->load();
  const uint64_t bytes = uint64_t{header_->l1_entries} * 8;
  const uint64_t l1 = header_->l1_offset >> header_->cluster_bits;
  refcounts_->protect(l1, (bytes + header_->cluster() - 1) >> header_->cluster_bits);
  for (const uint64_t entry : l1_)
    if (entry & kOffsetMask) refcounts_->protect((entry & kOffsetMask) >> header_->cluster_bits, 1);
}

std::vector<Destination> Qcow2Image::destinations() const {
  std::vector<Destination> all{{request_.top.get(), !request_.read_only}};
  if (data_file_) all.push_back({data_file_.get(), !request_.read_only});
  if (beneath_)
    for (const Destination& each : beneath_->destinations()) all.push_back(each);
  return all;
}

uint32_t Qcow2Image::discard_granularity() const {
  return request_.read_only ? 0 : static_cast<uint32_t>(header_->granule());
}

Range Qcow2Image::sectors_of(uint64_t first, uint64_t count) const {
  const uint64_t sector = first * granule_sectors();
  return {sector, std::min((first + count) * granule_sectors(), sectors()) - sector};
}

// By the end of the disk.
bool Qcow2Image::is_cut(uint64_t first, uint64_t count) const {
  return (first + count) * granule_sectors() > sectors();
}

void Qcow2Image::require_within(Range range) const {
  if (range.len == 0 || range.sector >= sectors() || range.len > sectors() - range.sector)
    throw Error(ERANGE, request_.top->name() + " has a disk of " + std::to_string(sectors()) +
                            " sectors; " + std::to_string(range.len) + " from " +
                            std::to_string(range.sector) + " on are not all in it.");
}

void Qcow2Image::require_writable() const {
  if (request_.read_only)
    throw Error(EROFS, request_.top->name() +
                           " is attached read-only: attach it for writing to write to it.");
}

// --- tables -----------------------------------------------------------------------------

uint64_t Qcow2Image::l2_offset(uint64_t cluster) const {
  return l1_[cluster / header_->l2_entries()] & kOffsetMask;
}

uint64_t Qcow2Image::page_of(uint64_t cluster) const {
  const uint64_t table = l2_offset(cluster);
  if (table == 0) return 0;
  return table + round_down(cluster % header_->l2_entries() * header_->l2_entry_bytes(),
                            pages_.table_bytes());
}

// Where there is no table, all that one would say is on one page.
uint64_t Qcow2Image::page_end(uint64_t cluster) const {
  const uint64_t span =
      l2_offset(cluster) ? pages_.table_bytes() / header_->l2_entry_bytes() : header_->l2_entries();
  return std::min(round_down(cluster, span) + span, header_->clusters());
}

// Brings the pages that say where `range` is into memory.
Task<> Qcow2Image::load(Range range) {
  const uint64_t end = (range.end() + cluster_sectors() - 1) / cluster_sectors();
  for (uint64_t at = range.sector / cluster_sectors(); at < end; at = page_end(at)) {
    const uint64_t page = page_of(at);
    if (page && !pages_.peek(page)) co_await pages_.get(page);
  }
}

// Nothing if the page is not in memory.
std::optional<Link> Qcow2Image::on_disk(uint64_t cluster) {
  const uint64_t page = page_of(cluster);
  if (page == 0) return Link{};
  const PagePtr bytes = pages_.peek(page);
  if (!bytes) return std::nullopt;
  const uint64_t at =
      cluster % header_->l2_entries() * header_->l2_entry_bytes() % pages_.table_bytes();
  return load_link(*header_, *bytes, at);
}

std::optional<Link> Qcow2Image::before_promotions(uint64_t cluster) {
  if (const auto found = own_.find(cluster); found != own_.end()) return found->second;
  return on_disk(cluster);
}

std::optional<Entry> Qcow2Image::lookup(uint64_t cluster) {
  std::optional<Link> link;
  const uint64_t first = cluster * per_cluster();
  auto data = promoted_.lower_bound(first);
  const bool promoted = data != promoted_.end() && data->first < first + per_cluster();
  // A cluster's promotion is all that there is to know of it.
  link = promoted && !header_->extended() ? Link{} : before_promotions(cluster);
  if (!link) return std::nullopt;
  for (; data != promoted_.end() && data->first < first + per_cluster(); ++data)
    link = with_data(*header_, *link, data->first - first, data->second.host);
  return decode(*header_, *link, cluster, request_.top->name());
}

// --- pieces -----------------------------------------------------------------------------

Qcow2Image::RunPtr Qcow2Image::run_at(uint64_t granule) const {
  auto at = runs_.upper_bound(granule);
  if (at == runs_.begin()) return nullptr;
  --at;
  return granule < at->second->end() ? at->second : nullptr;
}

std::vector<Qcow2Image::RunPtr> Qcow2Image::runs_in(uint64_t cluster) const {
  std::vector<RunPtr> found;
  const uint64_t first = cluster * per_cluster();
  if (RunPtr run = run_at(first)) found.push_back(std::move(run));
  for (auto at = runs_.upper_bound(first); at != runs_.end() && at->first < first + per_cluster();
       ++at)
    found.push_back(at->second);
  return found;
}

// From `sector` to the end of its cluster, or of its run, at most; nothing if a page is missing.
std::optional<Qcow2Image::Piece> Qcow2Image::piece_at(uint64_t sector) {
  const uint64_t granule = granule_of(sector);
  // Until a copy is complete what it is made of is read.
  if (RunPtr run = run_at(granule); run && run->left && !run->filling) {
    Piece piece;
    piece.kind = Piece::Kind::given;
    piece.range = sectors_of(*run);
    piece.range.len = piece.range.end() - sector;
    piece.range.sector = sector;
    piece.run = std::move(run);
    return piece;
  }
  const std::optional<Entry> entry = lookup(granule / per_cluster());
  if (!entry) return std::nullopt;
  Piece piece = piece_of(*entry, sector);
  // Runs may begin within a cluster.
  if (const auto next = runs_.upper_bound(granule); next != runs_.end())
    piece.range.len = std::min(piece.range.len, next->first * granule_sectors() - sector);
  if (piece.kind == Piece::Kind::data) cut_at_end_of_file(piece);
  return piece;
}

Qcow2Image::Piece Qcow2Image::piece_of(const Entry& entry, uint64_t sector) const {
  const Range own = cluster_at(sector / cluster_sectors());
  Piece piece;
  piece.range = {sector, own.end() - sector};
  switch (entry.kind) {
    case Entry::Kind::none: return unallocated(piece.range);
    case Entry::Kind::zero:
      piece.allocated = entry.allocated;
      piece.host = entry.allocated ? entry.host / kSector + (sector - own.sector) : 0;
      break;
    case Entry::Kind::compressed:
      piece.kind = Piece::Kind::compressed;
      piece.raw = entry.raw;
      break;
    case Entry::Kind::data:
      if (header_->extended()) return subcluster_piece(entry, sector);
      piece.kind = Piece::Kind::data;
      piece.host = entry.host / kSector + (sector - own.sector);
      piece.in_place = entry.copied && !request_.read_only;
      break;
  }
  return piece;
}

// As many subclusters as are alike.
Qcow2Image::Piece Qcow2Image::subcluster_piece(const Entry& entry, uint64_t sector) const {
  const Range own = cluster_at(sector / cluster_sectors());
  const uint64_t first = (sector - own.sector) / granule_sectors();
  const Entry::Kind kind = kind_of(*header_, entry, first);
  uint64_t end = first + 1;
  while (end < kSubclusters && kind_of(*header_, entry, end) == kind) end++;
  Piece piece;
  piece.range = {sector, std::min(own.sector + end * granule_sectors(), own.end()) - sector};
  if (kind == Entry::Kind::none) return unallocated(piece.range);
  piece.allocated = entry.allocated && kind == Entry::Kind::zero;
  if (entry.allocated) piece.host = entry.host / kSector + (sector - own.sector);
  if (kind == Entry::Kind::zero) return piece;
  piece.kind = Piece::Kind::data;
  piece.in_place = entry.copied && !request_.read_only;
  return piece;
}

Qcow2Image::Piece Qcow2Image::unallocated(Range range) const {
  Piece piece;
  piece.range = range;
  piece.here = false;
  if (beneath_) piece.kind = Piece::Kind::beneath;
  return piece;
}

// The last cluster may be there in part: what was never written reads as zeroes.
void Qcow2Image::cut_at_end_of_file(Piece& piece) const {
  const uint64_t end = data_disk().size() / kSector;
  if (piece.host + piece.range.len <= end) return;
  if (piece.in_place)
    throw Error(EIO, request_.top->name() + ": cluster " +
                         std::to_string(piece.range.sector / cluster_sectors()) +
                         " of the disk is beyond the end of the file. If it was cut off or copied "
                         "in part, restore it.");
  if (piece.host < end)
    piece.range.len = end - piece.host;
  else
    piece.kind = Piece::Kind::zero;
}

bool Qcow2Image::joins(const Piece& a, const Piece& b) {
  if (a.kind != b.kind || a.range.end() != b.range.sector) return false;
  switch (a.kind) {
    case Piece::Kind::zero: return a.here == b.here && !a.allocated && !b.allocated;
    case Piece::Kind::beneath: return true;
    case Piece::Kind::given: return a.run == b.run;
    case Piece::Kind::data: return a.in_place == b.in_place && a.host + a.range.len == b.host;
    case Piece::Kind::compressed: break;
  }
  return false;
}

// Loads what says where `range` is, and what comes behind it while a run of data goes on there,
// so that a run is one fault. The pieces are those of this moment: the last that is waited for
// comes before them.
Task<Qcow2Image::Loaded> Qcow2Image::load_run(Range range) {
  co_await load(range);
  const auto end_of_page = [&](uint64_t sector) {
    return std::min(page_end(sector / cluster_sectors()) * cluster_sectors(), sectors());
  };
  Loaded loaded;
  loaded.limit = end_of_page(range.end() - 1);
  for (int pages = 0;; pages++) {
    loaded.pieces = pieces(range, loaded.limit);
    if (pages == kPagesAhead || loaded.limit >= sectors() || loaded.pieces.empty() ||
        loaded.pieces.back().kind != Piece::Kind::data ||
        loaded.pieces.back().range.end() != loaded.limit)
      break;
    co_await load({loaded.limit, 1});
    loaded.limit = end_of_page(loaded.limit);
  }
  co_return loaded;
}

// From range.sector to range.end() or beyond, to `limit` at most; or less, after kMaxPieces.
// Empty: a page went from memory meanwhile.
std::vector<Qcow2Image::Piece> Qcow2Image::pieces(Range range, uint64_t limit) {
  std::vector<Piece> found;
  for (uint64_t at = range.sector; at < limit;) {
    std::optional<Piece> piece;
    try {
      piece = piece_at(at);
    } catch (const Error&) {
      if (at < range.end()) throw;
    }
    if (!piece && at < range.end()) return {};
    if (!piece) break;
    at = piece->range.end();
    if (!found.empty() && joins(found.back(), *piece)) {
      found.back().range.len += piece->range.len;
    } else {
      if (found.size() == kMaxPieces || (found.size() && piece->range.sector >= range.end())) break;
      found.push_back(std::move(*piece));
    }
  }
  return found;
}

// --- map, life --------------------------------------------------------------------------

Task<std::vector<MapEntry>> Qcow2Image::map(Range range) {
  require_within(range);
  std::vector<MapEntry> entries;
  while (range.len) {
    co_await load({range.sector, 1});
    std::optional<Piece> piece = piece_at(range.sector);
    if (!piece) continue;
    piece->range.len = std::min(piece->range.end(), range.end()) - range.sector;
    if (piece->kind == Piece::Kind::given) {
      // What was promoted is pending or on disk; the rest is as it was.
      const std::optional<Entry> entry = lookup(piece->range.sector / cluster_sectors());
      if (entry) {
        Piece known = piece_of(*entry, piece->range.sector);
        known.range.len = std::min(known.range.len, piece->range.len);
        piece = known;
      }
    }
    range = {piece->range.end(), range.end() - piece->range.end()};
    if (piece->kind == Piece::Kind::beneath) {
      std::vector<MapEntry> below = co_await beneath_->map(piece->range);
      for (MapEntry& each : below) entries.push_back(std::move(each));
      continue;
    }
    MapEntry entry;
    entry.range = piece->range;
    entry.zero = piece->kind == Piece::Kind::zero;
    entry.data = !entry.zero;
    entry.present = piece->here;
    entry.compressed = piece->kind == Piece::Kind::compressed;
    entry.has_offset = piece->kind == Piece::Kind::data || (entry.zero && piece->allocated);
    if (entry.has_offset) {
      entry.offset = piece->host * kSector;
      entry.disk = data_disk().name();
    }
    MapEntry* last = entries.empty() ? nullptr : &entries.back();
    if (last && last->depth == 0 && last->zero == entry.zero && last->present == entry.present &&
        last->compressed == entry.compressed && last->has_offset == entry.has_offset &&
        (!entry.has_offset || last->offset + last->range.len * kSector == entry.offset))
      last->range.len += entry.range.len;
    else
      entries.push_back(std::move(entry));
  }
  co_return entries;
}

Task<> Qcow2Image::preserve() { co_await pause(); }

Task<> Qcow2Image::pause() {
  if (request_.read_only) co_return;
  const AsyncSemaphore::Hold hold = co_await commit_.acquire();
  co_await commit_locked(UINT64_MAX, false);
  co_await refcounts_->settle();
}

Task<> Qcow2Image::close() {
  if (!request_.read_only) {
    co_await commit(UINT64_MAX, false);
    runs_.clear();
    oldest_.clear();
    unused_ = 0;
    co_await lower();
    co_await refcounts_->settle();
    used_ = co_await refcounts_->used_end();
  }
  if (beneath_) co_await beneath_->close();
}

nlohmann::json Qcow2Image::stats() const {
  nlohmann::json json{{"cluster-size", header_->cluster()},
                      {"pages-cached", pages_.size()},
                      {"page-reads", pages_.reads()},
                      {"runs", runs_.size()},
                      {"pending", promoted_.size() + own_.size()},
                      {"commits", commits_},
                      {"read_only", request_.read_only}};
  if (refcounts_) json["claimed"] = refcounts_->claimed();
  if (refcounts_) json["owed"] = refcounts_->owed();
  return json;
}

}  // namespace cowd::qcow2
