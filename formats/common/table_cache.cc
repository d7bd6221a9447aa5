// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/common/table_cache.hh"

#include <algorithm>

#include "formats/common/any_offset.hh"

namespace cowd {

TableCache::TableCache(Disk& disk, uint64_t table_bytes, uint64_t most_bytes)
    : disk_(disk),
      table_bytes_(table_bytes),
      most_(std::max<size_t>(most_bytes / std::max<uint64_t>(table_bytes, 512), 4)) {}

Task<TablePtr> TableCache::get(uint64_t offset) {
  if (TablePtr found = peek(offset)) co_return found;
  auto table = std::make_shared<Buffer>(table_bytes_);
  // Off the list whatever happens: the node would outlive this frame otherwise.
  const auto leave = [this](std::list<Load>::iterator* at) { loads_.erase(*at); };
  auto load = loads_.insert(loads_.end(), Load{offset, nullptr});
  const std::unique_ptr<std::list<Load>::iterator, decltype(leave)> guard(&load, leave);
  reads_++;
  co_await read_any(disk_, offset, *table);
  if (load->newer) co_return load->newer;
  put(offset, table);
  co_return table;
}

TablePtr TableCache::peek(uint64_t offset) {
  const auto found = index_.find(offset);
  if (found == index_.end()) return nullptr;
  order_.splice(order_.begin(), order_, found->second);
  return found->second->second;
}

void TableCache::put(uint64_t offset, TablePtr table) {
  for (Load& load : loads_)
    if (load.offset == offset) load.newer = table;
  forget(offset, 1);
  order_.emplace_front(offset, std::move(table));
  index_[offset] = order_.begin();
  if (order_.size() > most_) {
    index_.erase(order_.back().first);
    order_.pop_back();
  }
}

void TableCache::forget(uint64_t offset, uint64_t length) {
  for (uint64_t at = offset; at < offset + length; at += table_bytes_) {
    const auto found = index_.find(at);
    if (found == index_.end()) continue;
    order_.erase(found->second);
    index_.erase(found);
  }
}

}  // namespace cowd
