// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/qcow2/shadow.hh"

#include <algorithm>
#include <string>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/qcow2/operations.hh"

namespace cowd::qcow2 {
namespace {

[[noreturn]] void damaged(const Disk& disk, const std::string& what) {
  throw Error(EIO, disk.name() + ": " + what +
                       ", so the image is damaged and nothing is changed. Run 'cowctl check "
                       "--repair', or restore it from a backup.");
}

}  // namespace

Task<Header> header_to_change(Disk& disk) {
  Header header = co_await read_header(disk);
  const auto refuse = [&](int code, const std::string& what) {
    throw Error(code, disk.name() + ": " + what);
  };
  if (disk.read_only()) refuse(EROFS, "it cannot be written to, so it stays as it is.");
  if (header.incompatible & kCorrupt)
    refuse(EROFS,
           "a program has marked the image as damaged, so it is not changed: run 'cowctl check "
           "--repair' first.");
  if (header.has_data_file())
    refuse(ENOTSUP,
           "the data is in a file of its own, so there are no snapshots, and its size is changed "
           "with 'qemu-img resize'.");
  if (header.cluster() < disk.block_size())
    refuse(ENOTSUP, "its clusters of " + std::to_string(header.cluster()) +
                        " bytes are smaller than the blocks of what it lies on (" +
                        std::to_string(disk.block_size()) +
                        "): convert it to larger clusters with 'qemu-img convert'.");
  if (header.incompatible & kDirty) co_await rebuild_refcounts(disk, header);
  co_return header;
}

Shadow::Shadow(Disk& disk, const Header& header, const Progress& progress)
    : next(header),
      disk_(disk),
      header_(header),
      progress_(progress),
      pages_(disk, header.page()),
      refcounts_(disk, header_, pages_),
      length_(disk.size()) {}

Task<> Shadow::begin(uint64_t clusters, uint64_t steps) {
  steps_ = steps;
  // With the refcounts of all, and what claims set aside for them.
  const uint64_t now = clusters_for(disk_.size());
  const uint64_t blocks = (now + clusters) / header_.refcounts_per_block() + 2;
  const uint64_t tables = ((blocks * 8) >> header_.cluster_bits) + 2;
  const uint64_t room = now + clusters + 3 * (blocks + tables);
  try {
    co_await disk_.resize(room << header_.cluster_bits);
  } catch (const Error& error) {
    // A device has what it has; perhaps that is enough.
    if (error.code() != ENOSPC) throw;
  }
  co_await refcounts_.load();
  const uint64_t entries = uint64_t{header_.refcount_table_clusters} * (header_.cluster() / 8);
  table_ = co_await read_l1(disk_, header_.refcount_table_offset, entries);
  co_await protect_tables();
}

// What must not be found free.
Task<> Shadow::protect_tables() {
  const auto protect = [this](uint64_t offset, uint64_t bytes) {
    refcounts_.protect(offset >> header_.cluster_bits, clusters_for(bytes));
  };
  protect(header_.l1_offset, uint64_t{header_.l1_entries} * 8);
  if (header_.snapshots) protect(header_.snapshots_offset, 1);
  const std::vector<uint64_t> l1 = co_await read_l1(disk_, header_.l1_offset, header_.l1_entries);
  for (const uint64_t entry : l1)
    if (entry & kOffsetMask) protect(entry & kOffsetMask, 1);
}

void Shadow::step() {
  done_ = std::min(done_ + 1, steps_);
  if (progress_) progress_(done_, steps_);
}

// --- what names what --------------------------------------------------------------------

Task<> Shadow::count(const std::vector<uint64_t>& l1, int32_t by) {
  for (uint64_t i = 0; i < l1.size(); i++)
    if (l1[i]) co_await count_table(l1[i], i, by);
}

Task<> Shadow::count_table(uint64_t l1_entry, uint64_t index, int32_t by) {
  const uint64_t offset = l1_entry & kOffsetMask;
  if (l1_entry & kL1Reserved || offset % header_.cluster() != 0 || offset == 0)
    damaged(disk_, "entry " + std::to_string(index) + " of an L1 table names what cannot be");
  co_await require_counted(offset >> header_.cluster_bits);
  deltas_.add(offset >> header_.cluster_bits, by);
  Buffer table(header_.cluster());
  co_await read_any(disk_, offset, table);
  const uint64_t each = header_.l2_entry_bytes();
  for (uint64_t i = 0; i < header_.l2_entries(); i++) {
    const auto raw = load_be<uint64_t>(table, i * each);
    const uint64_t bitmap = header_.extended() ? load_be<uint64_t>(table, i * each + 8) : 0;
    if (raw == 0 && bitmap == 0) continue;
    const uint64_t cluster = index * header_.l2_entries() + i;
    const Entry entry = decode(header_, raw, bitmap, cluster, disk_.name());
    co_await count_entry(entry, by);
  }
  step();
}

Task<> Shadow::count_entry(const Entry& entry, int32_t by) {
  uint64_t first = entry.host >> header_.cluster_bits, last = first;
  if (entry.kind == Entry::Kind::compressed) {
    const CompressedPlace place = compressed_place(header_, entry.raw);
    first = place.offset >> header_.cluster_bits;
    last = (place.offset + place.bytes - 1) >> header_.cluster_bits;
  } else if (!entry.allocated) {
    co_return;
  }
  for (uint64_t cluster = first; cluster <= last; cluster++) {
    co_await require_counted(cluster);
    deltas_.add(cluster, by);
  }
}

void Shadow::count_bytes(uint64_t offset, uint64_t bytes, int32_t by) {
  for (uint64_t i = 0; i < clusters_for(bytes); i++)
    deltas_.add((offset >> header_.cluster_bits) + i, by);
}

// What is named and counts as free would be overwritten.
Task<> Shadow::require_counted(uint64_t cluster) {
  const uint64_t count = co_await refcounts_.get(cluster);
  if (count == 0)
    damaged(disk_, "host cluster " + std::to_string(cluster) +
                       " is in use, and its refcount says that it is free");
}

Task<uint64_t> Shadow::refcount(uint64_t cluster) {
  const uint64_t before = co_await refcounts_.get(cluster);
  co_return before + static_cast<uint64_t>(static_cast<int64_t>(deltas_.get(cluster)));
}

// --- new clusters -----------------------------------------------------------------------

Task<uint64_t> Shadow::place(uint64_t bytes) {
  const uint64_t wanted = clusters_for(bytes);
  HostRun row;
  std::vector<HostRun> shorter;
  while (row.count < wanted) {
    const HostRun more = co_await refcounts_.claim(wanted - row.count);
    if (row.count && row.first + row.count != more.first) {
      shorter.push_back(row);
      row = {};
    }
    if (row.count == 0) row.first = more.first;
    row.count += more.count;
  }
  for (const HostRun& each : shorter) refcounts_.release(each.first, each.count);
  for (uint64_t i = 0; i < row.count; i++) deltas_.add(row.first + i, 1);
  co_return row.first << header_.cluster_bits;
}

Task<uint64_t> Shadow::put(std::span<const std::byte> bytes) {
  const uint64_t offset = co_await place(bytes.size());
  Buffer whole(clusters_for(bytes.size()) << header_.cluster_bits);
  std::ranges::copy(bytes, whole.begin());
  co_await disk_.write_at(offset, whole);
  co_return offset;
}

Task<uint64_t> Shadow::put_l1(const std::vector<uint64_t>& l1) {
  Buffer bytes(l1.size() * 8);
  for (size_t i = 0; i < l1.size(); i++) store_be<uint64_t>(bytes, i * 8, l1[i]);
  co_return co_await put(bytes);
}

// --- flags ------------------------------------------------------------------------------

Task<> Shadow::set_copied(std::vector<uint64_t>& l1, int32_t names) {
  for (uint64_t i = 0; i < l1.size(); i++) {
    if (l1[i] == 0) continue;
    const uint64_t table =
        co_await copied_in_table(l1[i] & kOffsetMask, i * header_.l2_entries(), names);
    const uint64_t count = co_await refcount(table >> header_.cluster_bits);
    l1[i] = table | (count == 1 ? kCopied : 0);
    step();
  }
}

// Where the table is then: a copy, if a flag changes.
Task<uint64_t> Shadow::copied_in_table(uint64_t table, uint64_t first, int32_t names) {
  co_await require_counted(table >> header_.cluster_bits);
  Buffer bytes(header_.cluster());
  co_await read_any(disk_, table, bytes);
  const bool changed = co_await flags_in(bytes, first);
  if (!changed) co_return table;
  const uint64_t copy = co_await put(bytes);
  deltas_.add(copy >> header_.cluster_bits, names - 1);
  deltas_.add(table >> header_.cluster_bits, -names);
  co_return copy;
}

Task<bool> Shadow::flags_in(Buffer& table, uint64_t first) {
  const uint64_t each = header_.l2_entry_bytes();
  bool changed = false;
  for (uint64_t i = 0; i < header_.l2_entries(); i++) {
    const auto raw = load_be<uint64_t>(table, i * each);
    const uint64_t bitmap = header_.extended() ? load_be<uint64_t>(table, i * each + 8) : 0;
    if ((raw & kOffsetMask) == 0) continue;
    const Entry entry = decode(header_, raw, bitmap, first + i, disk_.name());
    if (entry.kind == Entry::Kind::compressed || !entry.allocated) continue;
    co_await require_counted(entry.host >> header_.cluster_bits);
    const uint64_t count = co_await refcount(entry.host >> header_.cluster_bits);
    if (entry.copied == (count == 1)) continue;
    store_be<uint64_t>(table, i * each, raw ^ kCopied);
    changed = true;
  }
  co_return changed;
}

// --- refcounts --------------------------------------------------------------------------

// A place for each block in which something changes, and for the table. Each place is counted
// in some block, which may change another one, until nothing is new.
Task<> Shadow::place_refcounts() {
  const uint64_t old_bytes = uint64_t{header_.refcount_table_clusters} << header_.cluster_bits;
  count_bytes(header_.refcount_table_offset, old_bytes, -1);
  for (bool more = true; more;) {
    more = false;
    const std::set<uint64_t> changed = deltas_.blocks(header_.refcounts_per_block());
    for (const uint64_t block : changed) {
      if (blocks_.count(block)) continue;
      const uint64_t at = co_await place(1);
      blocks_[block] = at;
      if (block < table_.size() && table_[block]) count_bytes(table_[block], 1, -1);
      more = true;
    }
    const uint64_t last = blocks_.empty() ? 0 : blocks_.rbegin()->first + 1;
    const uint64_t needed = std::max(old_bytes, round_up(last * 8, header_.cluster()));
    if (needed > kMaxRefcountTableBytes)
      throw Error(ENOSPC, disk_.name() +
                              " would need a refcount table of more than 8 MiB: convert it to "
                              "larger clusters with 'qemu-img convert'.");
    if (table_place_.count << header_.cluster_bits >= needed) continue;
    if (table_place_.count)
      count_bytes(table_place_.first << header_.cluster_bits,
                  table_place_.count << header_.cluster_bits, -1);
    const uint64_t at = co_await place(needed);
    table_place_ = {at >> header_.cluster_bits, clusters_for(needed)};
    more = true;
  }
}

Task<> Shadow::write_refcounts() {
  co_await place_refcounts();
  // Those that are read here are the old ones: the new ones are where nothing was.
  for (const auto& [block, at] : blocks_) co_await write_block(block, at);
  table_.resize((table_place_.count << header_.cluster_bits) / 8);
  for (const auto& [block, at] : blocks_) table_[block] = at;
  Buffer bytes(table_.size() * 8);
  for (size_t i = 0; i < table_.size(); i++) store_be<uint64_t>(bytes, i * 8, table_[i]);
  co_await disk_.write_at(table_place_.first << header_.cluster_bits, bytes);
  next.refcount_table_offset = table_place_.first << header_.cluster_bits;
  next.refcount_table_clusters = static_cast<uint32_t>(table_place_.count);
}

Task<> Shadow::write_block(uint64_t block, uint64_t at) {
  Buffer bytes(header_.cluster());
  if (block < table_.size() && table_[block]) co_await read_any(disk_, table_[block], bytes);
  const uint64_t first = block * header_.refcounts_per_block();
  for (uint64_t i = 0; i < header_.refcounts_per_block(); i++) {
    const int64_t by = deltas_.get(first + i);
    if (by == 0) continue;
    const uint64_t before = get_refcount(bytes, i, header_.refcount_order);
    if (by < 0 && before < static_cast<uint64_t>(-by))
      damaged(disk_, "host cluster " + std::to_string(first + i) + " is in use " +
                         std::to_string(-by) + " times or more, and its refcount is " +
                         std::to_string(before));
    if (by > 0 && before > header_.refcount_max() - static_cast<uint64_t>(by))
      throw Error(EOVERFLOW, disk_.name() + ": refcounts of " +
                                 std::to_string(header_.refcount_bits()) + " bits count to " +
                                 std::to_string(header_.refcount_max()) +
                                 ", and more snapshots than that would share a cluster. Delete "
                                 "some, or convert the image to more refcount_bits.");
    set_refcount(bytes, i, header_.refcount_order, before + static_cast<uint64_t>(by));
  }
  co_await disk_.write_at(at, bytes);
}

// --- the end ----------------------------------------------------------------------------

Task<> Shadow::finish() {
  if (!deltas_.blocks(header_.refcounts_per_block()).empty()) co_await write_refcounts();
  co_await disk_.flush();
  switching_ = true;
  co_await write_header(disk_, next);
  co_await disk_.flush();
  if (progress_) progress_(steps_, steps_);
  try {
    co_await cut();
  } catch (const Error&) {
    // All is done; it is only longer than it needs to be.
  }
}

Task<> Shadow::cut() {
  Pages pages(disk_, next.page());
  Refcounts refcounts(disk_, next, pages);
  co_await refcounts.load();
  const uint64_t end = co_await refcounts.used_end();
  co_await disk_.resize(round_up(end, disk_.block_size()));
}

Task<> Shadow::abandon() {
  if (switching_) co_return;
  try {
    co_await disk_.resize(length_);
  } catch (const Error&) {
    // The failure that led here is told.
  }
}

}  // namespace cowd::qcow2
