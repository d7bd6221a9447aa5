// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/qcow2/refcounts.hh"

#include <algorithm>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/parallel.hh"

namespace cowd::qcow2 {
namespace {

constexpr size_t kBatch = 1024;  // clusters that are paid for at once

}  // namespace

Task<> Refcounts::load() {
  const uint64_t bytes = uint64_t{header_.refcount_table_clusters} << header_.cluster_bits;
  Buffer table(bytes);
  co_await read_any(disk_, header_.refcount_table_offset, table);
  table_.resize(bytes / 8);
  protect(0, 1);
  protect(header_.refcount_table_offset >> header_.cluster_bits, header_.refcount_table_clusters);
  for (size_t i = 0; i < table_.size(); i++) {
    table_[i] = load_be<uint64_t>(table, i * 8);
    if (table_[i] == 0) continue;
    if (table_[i] & ~kOffsetMask || table_[i] % header_.cluster() != 0 ||
        table_[i] + header_.cluster() > round_up(disk_.size(), header_.cluster()))
      throw Error(EIO, disk_.name() + ": entry " + std::to_string(i) +
                           " of the refcount table does not name a refcount block. Run "
                           "'cowctl check --repair', or attach it read-only.");
    protect(table_[i] >> header_.cluster_bits, 1);
  }
}

void Refcounts::protect(uint64_t first, uint64_t count) {
  for (uint64_t i = 0; i < count; i++) protected_.insert(first + i);
}

void Refcounts::require_unprotected(uint64_t first, uint64_t count) const {
  for (uint64_t i = 0; i < count; i++)
    if (protected_.count(first + i))
      throw Error(EIO, disk_.name() + ": host cluster " + std::to_string(first + i) +
                           " holds a table, and its refcount says that it is free. Nothing is "
                           "allocated any more; detach the disk and run 'cowctl check --repair'.");
}

void Refcounts::require_room(uint64_t cluster) const {
  if (cluster >= limit())
    throw Error(ENOSPC, disk_.name() + " is full: all of its " + std::to_string(disk_.size()) +
                            " bytes are in use. Make it larger, detach the disk and attach it "
                            "again.");
}

uint64_t Refcounts::page_offset(uint64_t cluster) const {
  const uint64_t within = cluster % per_block() / per_page();
  return table_[cluster / per_block()] + within * pages_.table_bytes();
}

// A miss brings the whole block: whoever looks for free clusters goes on from there.
Task<PagePtr> Refcounts::page_of(uint64_t cluster) {
  const uint64_t wanted = page_offset(cluster);
  if (PagePtr found = pages_.peek(wanted)) co_return found;
  if (header_.cluster() == pages_.table_bytes() || header_.cluster() > 256 * 1024)
    co_return co_await pages_.get(wanted);
  const uint64_t block = table_[cluster / per_block()];
  PagePtr mine;
  for (uint64_t at = block; at < block + header_.cluster(); at += pages_.table_bytes()) {
    if (at != wanted && pages_.peek(at)) continue;
    PagePtr page = co_await pages_.get(at);
    if (at == wanted) mine = std::move(page);
  }
  co_return mine;
}

Task<uint64_t> Refcounts::get(uint64_t cluster) {
  if (owed_.count(cluster)) co_return 1;
  if (!on_disk(cluster / per_block())) co_return 0;
  const PagePtr page = co_await page_of(cluster);
  co_return get_refcount(*page, cluster % per_page(), header_.refcount_order);
}

// Whoever changes the claims does so without a suspension after this has returned.
Task<uint64_t> Refcounts::next_free(uint64_t cluster) {
  while (cluster < limit()) {
    if (const uint64_t end = claims_.end_of(cluster); end != cluster) {
      cluster = end;
      continue;
    }
    if (!on_disk(cluster / per_block())) co_return cluster;
    PagePtr page = pages_.peek(page_offset(cluster));
    if (!page) {
      page = co_await page_of(cluster);
      continue;  // somebody may have claimed it meanwhile
    }
    const uint64_t stop = round_down(cluster, per_page()) + per_page();
    while (cluster < stop && (get_refcount(*page, cluster % per_page(), header_.refcount_order) ||
                              claims_.has(cluster)))
      cluster++;
    if (cluster < stop) break;
  }
  co_return std::min(cluster, limit());
}

// The first of `count` clusters that nobody claims, where no block says anything.
uint64_t Refcounts::next_unclaimed(uint64_t cluster, uint64_t count) const {
  for (;;) {
    const uint64_t taken = claims_.next(cluster);
    if (taken >= cluster && taken - cluster >= count) return cluster;
    cluster = claims_.end_of(taken);
  }
}

void Refcounts::place_block(uint64_t block, uint64_t at) {
  require_room(at);
  require_unprotected(at, 1);
  claims_.add(at, 1);
  new_blocks_[block] = at;
  pages_.forget(at << header_.cluster_bits, header_.cluster());
}

// `from` is beyond what the table can describe, so nothing but claims is behind it.
void Refcounts::grow_table(uint64_t from) {
  const uint64_t blocks = (limit() + per_block() - 1) / per_block();
  const uint64_t clusters = (blocks * 8 + header_.cluster() - 1) >> header_.cluster_bits;
  if (clusters << header_.cluster_bits > kMaxRefcountTableBytes)
    throw Error(ENOSPC, disk_.name() +
                            " would need a refcount table of more than 8 MiB: convert "
                            "it to larger clusters with 'qemu-img convert'.");
  const uint64_t first = next_unclaimed(from, clusters);
  require_room(first + clusters - 1);
  // Who describes the table itself; each block lies in what it describes, or behind.
  std::map<uint64_t, uint64_t> blocks_at;
  uint64_t next = first + clusters;
  for (uint64_t block = first / per_block(); block <= (next - 1) / per_block(); block++) {
    if (new_blocks_.count(block)) continue;
    next = next_unclaimed(next, 1);
    require_room(next);
    blocks_at[block] = next++;
  }
  claims_.add(first, clusters);
  pages_.forget(first << header_.cluster_bits, clusters << header_.cluster_bits);
  new_table_ = HostRun{first, clusters};
  table_.resize((clusters << header_.cluster_bits) / 8);
  for (const auto& [block, at] : blocks_at) place_block(block, at);
}

Task<HostRun> Refcounts::claim(uint64_t wanted) {
  uint64_t from = hint_;
  for (;;) {
    const uint64_t first = co_await next_free(from);
    require_room(first);
    const uint64_t block = first / per_block();
    if (block >= table_.size()) {
      grow_table(first);
      continue;
    }
    if (!on_disk(block) && !new_blocks_.count(block)) {
      place_block(block, first);
      continue;
    }
    const uint64_t stop = std::min({first + wanted, (block + 1) * per_block(), limit()});
    uint64_t end = first + 1;
    // As far as is known without reading.
    while (end < stop && !claims_.has(end)) {
      if (on_disk(block)) {
        const PagePtr page = pages_.peek(page_offset(end));
        if (!page || get_refcount(*page, end % per_page(), header_.refcount_order)) break;
      }
      end++;
    }
    require_unprotected(first, end - first);
    claims_.add(first, end - first);
    if (from == hint_) hint_ = end;
    co_return HostRun{first, end - first};
  }
}

void Refcounts::release(uint64_t first, uint64_t count) {
  claims_.remove(first, count);
  if (count) hint_ = std::min(hint_, first);
}

Task<> Refcounts::raise(std::vector<uint64_t> clusters) {
  // The kernel may name, on replay, what no block describes.
  for (const uint64_t cluster : clusters) {
    const uint64_t block = cluster / per_block();
    if (block >= table_.size()) grow_table(table_.size() * per_block());
    if (on_disk(block) || new_blocks_.count(block)) continue;
    uint64_t at = next_unclaimed(block * per_block(), 1);
    if (at >= (block + 1) * per_block() || at >= limit()) {
      const HostRun elsewhere = co_await claim(1);
      at = elsewhere.first;
    }
    if (!new_blocks_.count(block)) place_block(block, at);
  }
  if (lazy() && new_blocks_.empty() && !new_table_) {
    co_await owe(clusters);
    co_return;
  }
  std::vector<uint64_t> all = clusters;
  const Growth growth{new_blocks_, new_table_};
  for (const auto& [block, at] : growth.blocks) all.push_back(at);
  if (growth.table)
    for (uint64_t i = 0; i < growth.table->count; i++) all.push_back(growth.table->first + i);
  std::ranges::sort(all);
  all.erase(std::unique(all.begin(), all.end()), all.end());
  co_await write_blocks(all, growth);
  if (!growth.blocks.empty() || growth.table) co_await write_table(growth);
  for (const uint64_t cluster : all) claims_.remove(cluster, 1);
}

Task<> Refcounts::set_dirty(bool dirty) {
  Header next = header_;
  next.incompatible = dirty ? header_.incompatible | kDirty : header_.incompatible & ~kDirty;
  if (next.incompatible == header_.incompatible) co_return;
  co_await write_header(disk_, next);
  co_await disk_.flush();
  header_ = next;
}

// All of them are described by blocks on disk.
Task<> Refcounts::owe(const std::vector<uint64_t>& clusters) {
  for (const uint64_t cluster : clusters) {
    const PagePtr now = co_await page_of(cluster);
    if (get_refcount(*now, cluster % per_page(), header_.refcount_order)) {
      claims_.remove(cluster, 1);
      continue;
    }
    claims_.add(cluster, 1);
    owed_.insert(cluster);
  }
  if (!owed_.empty()) co_await set_dirty(true);
  if (owed_.size() > kMaxOwed) co_await pay();
}

Task<> Refcounts::pay() {
  while (!owed_.empty()) {
    std::vector<uint64_t> some;
    for (auto at = owed_.begin(); at != owed_.end() && some.size() < kBatch; ++at)
      some.push_back(*at);
    const Growth none;
    co_await write_blocks(some, none);
    for (const uint64_t cluster : some) {
      owed_.erase(cluster);
      claims_.remove(cluster, 1);
    }
  }
}

Task<> Refcounts::settle() {
  co_await pay();
  co_await disk_.flush();
  co_await set_dirty(false);
}

Task<> Refcounts::write_blocks(const std::vector<uint64_t>& clusters, const Growth& growth) {
  std::map<uint64_t, std::shared_ptr<Buffer>> writes;  // by offset: pages, or whole new blocks
  for (const auto& [block, at] : growth.blocks)
    writes[at << header_.cluster_bits] = std::make_shared<Buffer>(header_.cluster());
  for (const uint64_t cluster : clusters) {
    const uint64_t block = cluster / per_block();
    if (const auto found = growth.blocks.find(block); found != growth.blocks.end()) {
      set_refcount(*writes.at(found->second << header_.cluster_bits), cluster % per_block(),
                   header_.refcount_order, 1);
      continue;
    }
    const uint64_t offset = page_offset(cluster);
    const PagePtr now = co_await page_of(cluster);
    if (get_refcount(*now, cluster % per_page(), header_.refcount_order) != 0) continue;
    auto& page = writes[offset];
    if (!page) page = std::make_shared<Buffer>(*now);
    set_refcount(*page, cluster % per_page(), header_.refcount_order, 1);
  }
  if (writes.empty()) co_return;
  const Writes list(writes.begin(), writes.end());
  co_await write_durably(disk_, list);
  for (const auto& [offset, bytes] : list)
    if (bytes->size() == pages_.table_bytes()) pages_.put(offset, bytes);
}

std::vector<std::byte> Refcounts::table_bytes(const Growth& growth) const {
  std::vector<std::byte> bytes(table_.size() * 8);
  for (size_t i = 0; i < table_.size(); i++) store_be<uint64_t>(bytes, i * 8, table_[i]);
  for (const auto& [block, at] : growth.blocks)
    store_be<uint64_t>(bytes, block * 8, at << header_.cluster_bits);
  return bytes;
}

// The blocks are durable.
Task<> Refcounts::write_table(const Growth& growth) {
  const std::vector<std::byte> table = table_bytes(growth);
  const Buffer bytes(table.begin(), table.end());
  if (growth.table) {
    co_await disk_.write_at(growth.table->first << header_.cluster_bits, bytes);
    co_await disk_.flush();
    Header next = header_;
    next.refcount_table_offset = growth.table->first << header_.cluster_bits;
    next.refcount_table_clusters = static_cast<uint32_t>(growth.table->count);
    co_await write_header(disk_, next);
    co_await disk_.flush();
    for (uint64_t i = 0; i < header_.refcount_table_clusters; i++) {
      const uint64_t old = (header_.refcount_table_offset >> header_.cluster_bits) + i;
      superfluous_.push_back(old);
      protected_.erase(old);
    }
    header_ = next;
    protect(growth.table->first, growth.table->count);
    new_table_.reset();
  } else {
    uint64_t last = UINT64_MAX;
    for (const auto& [block, at] : growth.blocks) {
      const uint64_t page = round_down(block * 8, pages_.table_bytes());
      if (page == last) continue;
      last = page;
      const Buffer part(bytes.begin() + static_cast<ptrdiff_t>(page),
                        bytes.begin() + static_cast<ptrdiff_t>(page + pages_.table_bytes()));
      co_await disk_.write_at(header_.refcount_table_offset + page, part);
    }
    co_await disk_.flush();
  }
  for (const auto& [block, at] : growth.blocks) {
    table_[block] = at << header_.cluster_bits;
    protect(at, 1);
    new_blocks_.erase(block);
  }
}

Task<> Refcounts::lower(std::map<uint64_t, Drop>& drops) {
  struct Change {
    std::shared_ptr<Buffer> page;
    std::vector<uint64_t> clusters;
  };
  for (auto drop = drops.begin(); drop != drops.end();) {
    if (owed_.erase(drop->first) == 0) {
      ++drop;
      continue;
    }
    claims_.remove(drop->first, 1);
    freed(drop->first, drop->second);
    drop = drops.erase(drop);
  }
  std::map<uint64_t, Change> changes;  // by offset of the page
  std::vector<uint64_t> nowhere;
  for (const auto& [cluster, drop] : drops) {
    if (!on_disk(cluster / per_block())) {
      nowhere.push_back(cluster);
      continue;
    }
    const PagePtr now = co_await page_of(cluster);
    Change& change = changes[page_offset(cluster)];
    if (!change.page) change.page = std::make_shared<Buffer>(*now);
    const uint64_t index = cluster % per_page();
    const uint64_t value = get_refcount(*change.page, index, header_.refcount_order);
    set_refcount(*change.page, index, header_.refcount_order,
                 value > drop.count ? value - drop.count : 0);
    change.clusters.push_back(cluster);
  }
  for (const uint64_t cluster : nowhere) drops.erase(cluster);
  for (const auto& [offset, change] : changes) {
    co_await disk_.write_at(offset, *change.page);
    pages_.put(offset, change.page);
    for (const uint64_t cluster : change.clusters) {
      if (get_refcount(*change.page, cluster % per_page(), header_.refcount_order) == 0)
        freed(cluster, drops.at(cluster));
      drops.erase(cluster);
    }
  }
}

void Refcounts::freed(uint64_t cluster, const Drop& drop) {
  protected_.erase(cluster);
  if (drop.keep)
    claims_.add(cluster, 1);
  else
    hint_ = std::min(hint_, cluster);
}

Task<uint64_t> Refcounts::used_end() {
  for (uint64_t block = table_.size(); block-- > 0;) {
    if (!on_disk(block)) continue;
    for (uint64_t page = per_block() / per_page(); page-- > 0;) {
      const uint64_t first = block * per_block() + page * per_page();
      const PagePtr bytes = co_await pages_.get(page_offset(first));
      for (uint64_t i = per_page(); i-- > 0;)
        if (get_refcount(*bytes, i, header_.refcount_order))
          co_return (first + i + 1) << header_.cluster_bits;
    }
  }
  co_return header_.cluster();
}

}  // namespace cowd::qcow2
