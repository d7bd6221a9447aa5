// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/dscow/page_cache.hh"

#include <memory>

namespace cowd::dscow {

Task<PagePtr> PageCache::get(uint64_t page) {
  if (const auto found = index_.find(page); found != index_.end()) {
    order_.splice(order_.begin(), order_, found->second);
    co_return found->second->second;
  }
  auto bits = std::make_shared<Buffer>(kBlock);
  // Off the list whatever happens: the node would outlive this frame otherwise.
  const auto leave = [this](std::list<Load>::iterator* at) { loads_.erase(*at); };
  auto load = loads_.insert(loads_.end(), Load{page, nullptr});
  const std::unique_ptr<std::list<Load>::iterator, decltype(leave)> guard(&load, leave);
  reads_++;
  co_await disk_.read_at(geometry_.page_offset(page), *bits);
  if (load->newer) co_return load->newer;
  put(page, bits);
  co_return bits;
}

void PageCache::put(uint64_t page, PagePtr bits) {
  for (Load& load : loads_)
    if (load.page == page) load.newer = bits;
  if (const auto found = index_.find(page); found != index_.end()) {
    order_.erase(found->second);
    index_.erase(found);
  }
  order_.emplace_front(page, std::move(bits));
  index_[page] = order_.begin();
  if (order_.size() > kCachedPages) {
    index_.erase(order_.back().first);
    order_.pop_back();
  }
}

}  // namespace cowd::dscow
