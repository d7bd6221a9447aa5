// SPDX-License-Identifier: GPL-2.0-or-later
// Checks an image: counts what names each host cluster, and compares with the refcounts.
//
//   found                                        counts as   repair
//   a refcount larger than what names it         leak        lowered
//   a refcount smaller than that                 error       raised
//   a COPIED flag that the refcount contradicts  error       set right
//   the dirty bit, without anything of the above a remark    cleared
//   an entry that names what cannot be           error       none, and nothing is lowered then
//   a cluster named more often than its refcount can say, the same
//
// Where refcount blocks are missing or lie where something else is, repair writes all refcounts
// anew behind everything else, and then the header: a crash leaves the old ones or the new. Blocks
// of which all would be 0 are left out: a sparse file may be of any length.
// Memory: 6 bytes for each host cluster in use, 200 where it is far from all others; one table at
// a time. Time: no table is read twice for one L1 table, for they might all be the same.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/bytes.hh"
#include "formats/common/sparse_bits.hh"
#include "formats/qcow2/operations.hh"

namespace cowd::qcow2 {
namespace {

constexpr size_t kMaxFindings = 50;
constexpr uint64_t kMaxTableEntries = 4 << 20;  // of a snapshot's L1, or of a bitmap's table

// How often something names each cluster.
class Names {
 public:
  void add(uint64_t cluster) {
    auto& chunk = chunks_[cluster / kChunk];
    if (!chunk) chunk = std::make_unique<Chunk>();
    (*chunk)[cluster % kChunk]++;
    end_ = std::max(end_, cluster + 1);
  }
  uint64_t get(uint64_t cluster) const {
    const auto found = chunks_.find(cluster / kChunk);
    return found == chunks_.end() ? 0 : (*found->second)[cluster % kChunk];
  }
  void remove(uint64_t cluster) { (*chunks_.at(cluster / kChunk))[cluster % kChunk]--; }
  uint64_t end() const { return end_; }
  std::vector<uint64_t> chunks() const {
    std::vector<uint64_t> all;
    for (const auto& [chunk, counts] : chunks_) all.push_back(chunk * kChunk);
    std::ranges::sort(all);
    return all;
  }
  // Small: who makes an image chooses where in a sparse file its clusters are.
  static constexpr uint64_t kChunk = 32;

 private:
  using Chunk = std::array<uint32_t, kChunk>;
  std::unordered_map<uint64_t, std::unique_ptr<Chunk>> chunks_;
  uint64_t end_ = 0;
};

bool is_zero(std::span<const std::byte> bytes) {
  return bytes[0] == std::byte{} &&
         std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

class Checker {
 public:
  Checker(Disk& disk, Header& header, Progress progress)
      : disk_(disk), header_(header), progress_(std::move(progress)) {}

  Task<> count();
  Task<> compare();
  Task<> check_copied(bool repair);
  Task<> repair();
  Task<> clear_marks();
  bool damaged() const { return damaged_ != 0; }
  CheckResult& result() { return result_; }

 private:
  bool name(uint64_t offset, uint64_t bytes, const std::string& what);
  void damage(const std::string& what);
  void find(const std::string& what);
  Task<> count_l1(uint64_t offset, uint64_t entries, bool active, const std::string& whose);
  Task<> count_l2(uint64_t offset, uint64_t first, bool active, const std::string& whose);
  void count_entry(uint64_t raw, uint64_t bitmap, uint64_t cluster, bool active);
  Task<> count_snapshots();
  Task<> count_bitmaps();
  Task<> count_bitmap_table(uint64_t offset, uint64_t entries);
  Task<> count_refcounts();
  Task<> compare_block(uint64_t block, std::span<const uint64_t> chunks);
  void compare_one(uint64_t cluster, uint64_t refcount);
  Task<uint64_t> refcount(uint64_t cluster);
  Task<> repair_in_place(bool raise);
  std::set<uint64_t> blocks_needed() const;
  Task<> rebuild();
  Task<> copied_in_table(uint64_t offset, uint64_t entries, bool l2, bool repair);
  uint64_t file_clusters() const {
    return (disk_.size() + header_.cluster() - 1) >> header_.cluster_bits;
  }
  uint64_t per_block() const { return header_.refcounts_per_block(); }

  Disk& disk_;
  Header& header_;
  Progress progress_;
  Names refs_;
  std::vector<uint64_t> table_;  // of refcounts
  bool must_rebuild_ = false;
  uint64_t damaged_ = 0;
  uint64_t low_ = 0, high_ = 0;  // clusters with a refcount too small, too large
  uint64_t flags_ = 0;           // COPIED where it must not be, or the other way
  CheckResult result_;
};

void Checker::find(const std::string& what) {
  if (result_.findings.size() < kMaxFindings)
    result_.findings.push_back(what);
  else if (result_.findings.size() == kMaxFindings)
    result_.findings.push_back("There is more like it.");
}

void Checker::damage(const std::string& what) {
  damaged_++;
  result_.errors++;
  find(what);
}

// False, and damage, where it cannot be.
bool Checker::name(uint64_t offset, uint64_t bytes, const std::string& what) {
  const uint64_t first = offset >> header_.cluster_bits;
  const uint64_t last = (offset + std::max<uint64_t>(bytes, 1) - 1) >> header_.cluster_bits;
  if (offset > kOffsetMask || last >= file_clusters()) {
    damage(what + " is said to be at " + std::to_string(offset) + ", beyond the end of the file.");
    return false;
  }
  for (uint64_t cluster = first; cluster <= last; cluster++) refs_.add(cluster);
  return true;
}

Task<> Checker::count() {
  result_.total_granules = header_.clusters();
  name(0, 1, "The header");
  co_await count_l1(header_.l1_offset, header_.l1_entries, true, "");
  co_await count_snapshots();
  co_await count_bitmaps();
  co_await count_refcounts();
}

Task<> Checker::count_l1(uint64_t offset, uint64_t entries, bool active, const std::string& whose) {
  if (entries == 0) co_return;
  if (offset % header_.cluster() != 0 || entries > kMaxTableEntries ||
      !name(offset, entries * 8, "The L1 table" + whose)) {
    if (offset % header_.cluster() != 0 || entries > kMaxTableEntries)
      damage("The L1 table" + whose + " is too long, or not at the beginning of a cluster.");
    co_return;
  }
  const std::vector<uint64_t> l1 = co_await read_l1(disk_, offset, entries);
  SparseBits seen;  // clusters of L2 tables
  for (size_t i = 0; i < l1.size(); i++) {
    if (l1[i] == 0) continue;
    const std::string what = "The L2 table " + std::to_string(i) + whose;
    const uint64_t table = l1[i] & kOffsetMask;
    if (l1[i] & kL1Reserved || table % header_.cluster() != 0 || table == 0) {
      damage(what + " is named by an entry that cannot be.");
      continue;
    }
    if (seen.set(table >> header_.cluster_bits)) {
      damage(what + " is also another one of the same disk.");
      continue;
    }
    if (!name(table, header_.cluster(), what)) continue;
    co_await count_l2(table, i * header_.l2_entries(), active, whose);
    if (progress_ && active) progress_(i + 1, l1.size());
  }
}

Task<> Checker::count_l2(uint64_t offset, uint64_t first, bool active, const std::string& whose) {
  Buffer table(header_.cluster());
  co_await read_any(disk_, offset, table);
  const uint64_t each = header_.l2_entry_bytes();
  for (uint64_t i = 0; i < header_.l2_entries(); i++) {
    const auto raw = load_be<uint64_t>(table, i * each);
    const uint64_t bitmap = header_.extended() ? load_be<uint64_t>(table, i * each + 8) : 0;
    if (raw == 0 && bitmap == 0) continue;
    try {
      count_entry(raw, bitmap, first + i, active);
    } catch (const Error& error) {
      damage(error.what() + whose);
    }
  }
}

void Checker::count_entry(uint64_t raw, uint64_t bitmap, uint64_t cluster, bool active) {
  const Entry entry = decode(header_, raw, bitmap, cluster, disk_.name());
  const std::string what = "Cluster " + std::to_string(cluster) + " of the disk";
  const bool has_data = entry.kind == Entry::Kind::data && entry.allocated;
  if (active && (has_data || entry.kind == Entry::Kind::compressed)) result_.allocated_granules++;
  if (entry.kind == Entry::Kind::compressed) {
    const CompressedPlace place = compressed_place(header_, raw);
    name(place.offset, place.bytes, what);
  } else if (entry.allocated && !header_.has_data_file()) {
    name(entry.host, header_.cluster(), what);
  }
}

// "Snapshots"
Task<> Checker::count_snapshots() {
  uint64_t at = header_.snapshots_offset;
  for (uint32_t i = 0; i < header_.snapshots; i++) {
    Buffer fixed(40);
    co_await read_any(disk_, at, fixed);
    const auto l1 = load_be<uint64_t>(fixed, 0);
    const auto entries = load_be<uint32_t>(fixed, 8);
    const uint64_t length = 40 + uint64_t{load_be<uint32_t>(fixed, 36)} +
                            load_be<uint16_t>(fixed, 12) + load_be<uint16_t>(fixed, 14);
    at += round_up(length, 8);
    if (at - header_.snapshots_offset > 1 << 30) {
      damage("The snapshot table is longer than 1 GiB, which it cannot be.");
      co_return;
    }
    co_await count_l1(l1, entries, false, " of snapshot " + std::to_string(i + 1));
  }
  if (header_.snapshots)
    name(header_.snapshots_offset, at - header_.snapshots_offset, "The snapshot table");
}

// "Bitmaps extension"; where the autoclear bit is not set they are nobody's.
Task<> Checker::count_bitmaps() {
  if (!header_.has_bitmaps || !(header_.autoclear & kBitmaps)) co_return;
  if (header_.bitmap_directory_size > 16 << 20 ||
      header_.bitmap_directory_offset % header_.cluster() != 0) {
    damage("The directory of bitmaps is not where it can be.");
    co_return;
  }
  if (!name(header_.bitmap_directory_offset, header_.bitmap_directory_size,
            "The directory of bitmaps"))
    co_return;
  Buffer directory(header_.bitmap_directory_size);
  co_await read_any(disk_, header_.bitmap_directory_offset, directory);
  for (uint64_t at = 0; at + 24 <= directory.size();) {
    co_await count_bitmap_table(load_be<uint64_t>(directory, at),
                                load_be<uint32_t>(directory, at + 8));
    at += round_up(24 + load_be<uint16_t>(directory, at + 18) +
                       uint64_t{load_be<uint32_t>(directory, at + 20)},
                   8);
  }
}

Task<> Checker::count_bitmap_table(uint64_t offset, uint64_t entries) {
  if (entries > kMaxTableEntries || offset % header_.cluster() != 0) {
    damage("The table of a bitmap is too long, or not at the beginning of a cluster.");
    co_return;
  }
  if (entries == 0 || !name(offset, entries * 8, "The table of a bitmap")) co_return;
  const std::vector<uint64_t> table = co_await read_l1(disk_, offset, entries);
  for (const uint64_t entry : table)
    if (entry & kOffsetMask) name(entry & kOffsetMask, header_.cluster(), "A part of a bitmap");
}

Task<> Checker::count_refcounts() {
  const uint64_t bytes = uint64_t{header_.refcount_table_clusters} << header_.cluster_bits;
  name(header_.refcount_table_offset, bytes, "The refcount table");
  table_ = co_await read_l1(disk_, header_.refcount_table_offset, bytes / 8);
  for (size_t i = 0; i < table_.size(); i++) {
    if (table_[i] == 0) continue;
    const std::string what = "Refcount block " + std::to_string(i);
    const bool sane = !(table_[i] & ~kOffsetMask) && table_[i] % header_.cluster() == 0 &&
                      (table_[i] >> header_.cluster_bits) < file_clusters();
    if (sane) refs_.add(table_[i] >> header_.cluster_bits);
    if (sane && refs_.get(table_[i] >> header_.cluster_bits) == 1) continue;
    find(what + (sane ? " lies where something else is."
                      : " is named by an entry of the refcount table that cannot be."));
    must_rebuild_ = true;
    result_.errors++;
    if (sane) refs_.remove(table_[i] >> header_.cluster_bits);
    table_[i] = 0;
  }
}

Task<> Checker::compare() {
  const std::vector<uint64_t> chunks = refs_.chunks();
  for (uint64_t block = 0; block < table_.size(); block++)
    if (table_[block]) co_await compare_block(block, chunks);
  for (const uint64_t chunk : chunks)
    for (uint64_t cluster = chunk; cluster < chunk + Names::kChunk; cluster++) {
      const uint64_t block = cluster / per_block();
      if (refs_.get(cluster) == 0 || (block < table_.size() && table_[block])) continue;
      must_rebuild_ = true;
      compare_one(cluster, 0);
    }
  result_.errors += low_;
  result_.leaks += high_;
}

// Those of a sparse file may be many, each of holes, and of 16 million clusters that are not there.
Task<> Checker::compare_block(uint64_t block, std::span<const uint64_t> chunks) {
  Buffer bytes(header_.cluster());
  co_await read_any(disk_, table_[block], bytes);
  const auto named = std::ranges::lower_bound(chunks, block * per_block());
  const bool none = named == chunks.end() || *named >= (block + 1) * per_block();
  if (none && is_zero(bytes)) co_return;
  for (uint64_t i = 0; i < per_block(); i++)
    compare_one(block * per_block() + i, get_refcount(bytes, i, header_.refcount_order));
}

void Checker::compare_one(uint64_t cluster, uint64_t refcount) {
  const uint64_t named = refs_.get(cluster);
  if (refcount == named) return;
  if (named > header_.refcount_max())
    return damage("Host cluster " + std::to_string(cluster) + " is named " + std::to_string(named) +
                  " times, and the refcounts of the image go up to " +
                  std::to_string(header_.refcount_max()) + ".");
  (refcount < named ? low_ : high_)++;
  find((refcount < named ? "Host cluster " : "Leaked: host cluster ") + std::to_string(cluster) +
       " has refcount " + std::to_string(refcount) + " and is named " + std::to_string(named) +
       (named == 1 ? " time." : " times."));
}

// --- flags ------------------------------------------------------------------------------

// What they must be follows from refs_, which the refcounts are equal to or will be.
Task<> Checker::check_copied(bool repair) {
  const std::vector<uint64_t> l1 = co_await read_l1(disk_, header_.l1_offset, header_.l1_entries);
  co_await copied_in_table(header_.l1_offset, header_.l1_entries, false, repair);
  SparseBits seen;
  for (const uint64_t entry : l1) {
    const uint64_t table = entry & kOffsetMask;
    if (table == 0 || entry & kL1Reserved || table % header_.cluster() != 0 ||
        table >> header_.cluster_bits >= file_clusters() || seen.set(table >> header_.cluster_bits))
      continue;
    co_await copied_in_table(table, header_.l2_entries(), true, repair);
  }
}

Task<> Checker::copied_in_table(uint64_t offset, uint64_t entries, bool l2, bool repair) {
  const uint64_t each = l2 ? header_.l2_entry_bytes() : 8;
  const uint64_t page = header_.page();
  for (uint64_t start = 0; start < entries * each; start += page) {
    Buffer bytes(page);
    co_await read_any(disk_, offset + start, bytes);
    uint64_t wrong = 0;
    for (uint64_t at = 0; at < page && start + at < entries * each; at += each) {
      const auto raw = load_be<uint64_t>(bytes, at);
      const uint64_t host = (raw & kOffsetMask) >> header_.cluster_bits;
      if (host == 0 || (l2 && (raw & kCompressed || header_.has_data_file()))) continue;
      const bool wanted = refs_.get(host) == 1;
      if (wanted == ((raw & kCopied) != 0)) continue;
      wrong++;
      store_be<uint64_t>(bytes, at, raw ^ kCopied);
      if (repair) continue;
      find(std::string(l2 ? "An L2" : "An L1") + " entry says that host cluster " +
           std::to_string(host) +
           (wanted ? " is shared, and it is not."
                   : " is not shared, and "
                     "it is."));
    }
    if (wrong && repair) co_await write_any(disk_, offset + start, bytes);
    if (repair) {
      result_.errors_fixed += wrong;
      continue;
    }
    flags_ += wrong;
    result_.errors += wrong;
  }
}

// --- repair -----------------------------------------------------------------------------

Task<> Checker::repair() {
  if (disk_.read_only())
    throw Error(EROFS, disk_.name() + " cannot be written to, so it cannot be repaired.");
  result_.errors -= low_ + flags_;
  if (must_rebuild_) {
    if (damaged_)
      throw Error(EIO, disk_.name() +
                           ": refcounts are missing, and there are tables that are "
                           "damaged: this cannot be repaired here. Restore the image "
                           "from a backup.");
    result_.errors_fixed += low_ + std::exchange(result_.errors, 0);
    result_.leaks_fixed += std::exchange(result_.leaks, 0);
    co_await rebuild();
    co_await check_copied(true);
    co_return;
  }
  co_await repair_in_place(true);
  co_await disk_.flush();
  result_.errors_fixed += low_;
  co_await check_copied(true);
  // What a damaged entry named must not be given to somebody else.
  if (damaged_) co_return;
  co_await repair_in_place(false);
  co_await disk_.flush();
  result_.leaks_fixed += std::exchange(result_.leaks, 0);
}

Task<> Checker::repair_in_place(bool raise) {
  const uint64_t page = header_.page();
  const uint64_t per_page = (page * 8) >> header_.refcount_order;
  for (uint64_t block = 0; block < table_.size(); block++) {
    if (table_[block] == 0) continue;
    for (uint64_t start = 0; start < header_.cluster(); start += page) {
      Buffer bytes(page);
      co_await read_any(disk_, table_[block] + start, bytes);
      const uint64_t first = block * per_block() + ((start * 8) >> header_.refcount_order);
      bool changed = false;
      for (uint64_t i = 0; i < per_page; i++) {
        const uint64_t now = get_refcount(bytes, i, header_.refcount_order);
        const uint64_t named = std::min(refs_.get(first + i), header_.refcount_max());
        if (raise ? now >= named : now <= named) continue;
        set_refcount(bytes, i, header_.refcount_order, named);
        changed = true;
      }
      if (changed) co_await write_any(disk_, table_[block] + start, bytes);
    }
  }
}

// Of the refcount table; the others say of their clusters that they are free, as no block does.
std::set<uint64_t> Checker::blocks_needed() const {
  std::set<uint64_t> blocks;
  for (const uint64_t chunk : refs_.chunks())
    for (uint64_t cluster = chunk; cluster < chunk + Names::kChunk; cluster++)
      if (refs_.get(cluster)) blocks.insert(cluster / per_block());
  return blocks;
}

// All refcounts anew, behind everything else.
Task<> Checker::rebuild() {
  const uint64_t old_clusters = header_.refcount_table_clusters;
  for (uint64_t i = 0; i < old_clusters; i++)
    refs_.remove((header_.refcount_table_offset >> header_.cluster_bits) + i);
  for (const uint64_t block : table_)
    if (block) refs_.remove(block >> header_.cluster_bits);
  // Where the old ones were counts as used: they must hold until the header names the new.
  const uint64_t first = refs_.end();
  std::set<uint64_t> blocks = blocks_needed();
  uint64_t tables = 0, counted = 0;  // of the new clusters, those that are counted too
  while (tables == 0 || counted != tables + blocks.size()) {
    counted = tables + blocks.size();
    for (uint64_t i = 0; i < counted; i++) blocks.insert((first + i) / per_block());
    tables = ((*blocks.rbegin() + 1) * 8 + header_.cluster() - 1) >> header_.cluster_bits;
  }
  if (tables << header_.cluster_bits > kMaxRefcountTableBytes)
    throw Error(EIO, disk_.name() +
                         " would need a refcount table of more than 8 MiB: convert it "
                         "to larger clusters with 'qemu-img convert'.");
  const uint64_t after = first + tables + blocks.size();
  for (uint64_t i = first; i < after; i++) refs_.add(i);
  const uint64_t end = after << header_.cluster_bits;
  if (end > disk_.size()) co_await disk_.resize(end);
  Buffer table(tables << header_.cluster_bits);
  uint64_t at = (first + tables) << header_.cluster_bits;
  for (const uint64_t block : blocks) {
    store_be<uint64_t>(table, block * 8, at);
    Buffer bytes(header_.cluster());
    for (uint64_t i = 0; i < per_block(); i++)
      if (const uint64_t named = refs_.get(block * per_block() + i))
        set_refcount(bytes, i, header_.refcount_order, std::min(named, header_.refcount_max()));
    co_await disk_.write_at(at, bytes);
    at += header_.cluster();
  }
  co_await disk_.write_at(first << header_.cluster_bits, table);
  co_await disk_.flush();
  Header next = header_;
  next.refcount_table_offset = first << header_.cluster_bits;
  next.refcount_table_clusters = static_cast<uint32_t>(tables);
  co_await write_header(disk_, next);
  co_await disk_.flush();
  header_ = next;
}

Task<> Checker::clear_marks() {
  if (!(header_.incompatible & (kDirty | kCorrupt))) co_return;
  Header next = header_;
  next.incompatible &= ~(kDirty | kCorrupt);
  co_await write_header(disk_, next);
  co_await disk_.flush();
  header_ = next;
}

}  // namespace

Task<std::vector<uint64_t>> read_l1(Disk& disk, uint64_t offset, uint64_t entries) {
  Buffer bytes(entries * 8);
  co_await read_any(disk, offset, bytes);
  std::vector<uint64_t> table(entries);
  for (uint64_t i = 0; i < entries; i++) table[i] = load_be<uint64_t>(bytes, i * 8);
  co_return table;
}

Task<> rebuild_refcounts(Disk& disk, Header& header) {
  Checker checker(disk, header, {});
  co_await checker.count();
  co_await checker.compare();
  if (checker.damaged())
    throw Error(EIO, disk.name() + " was not closed, and its refcounts cannot be made anew: " +
                         checker.result().findings.front() +
                         " Run 'cowctl check', attach it read-only, or restore it from a backup.");
  co_await checker.repair();
  co_await checker.clear_marks();
}

Task<CheckResult> check(CheckRequest request) {
  Header header = co_await read_header(*request.top);
  if (request.base)
    throw Error(EINVAL, request.top->name() +
                            " names what lies under it itself: leave out the "
                            "base, " +
                            request.base->name() + ".");
  Checker checker(*request.top, header, request.progress);
  CheckResult& result = checker.result();
  if (header.incompatible & kDirty)
    result.findings.push_back(
        "The image is in use, or was not closed (the dirty bit is set): its refcounts are not "
        "up to date.");
  const bool corrupt = header.incompatible & kCorrupt;
  if (corrupt)
    result.findings.push_back("A program has found the image damaged (the corrupt bit is set).");
  co_await checker.count();
  co_await checker.compare();
  co_await checker.check_copied(false);
  const bool wrong = result.errors || result.leaks || header.incompatible & (kDirty | kCorrupt);
  if (request.repair && wrong) {
    co_await checker.repair();
    if (!checker.damaged()) co_await checker.clear_marks();
  }
  (corrupt && header.incompatible & kCorrupt ? result.errors : result.errors_fixed) += corrupt;
  co_return result;
}

}  // namespace cowd::qcow2
