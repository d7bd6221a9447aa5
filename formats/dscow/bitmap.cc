// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/dscow/bitmap.hh"

#include <algorithm>
#include <exception>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>
#include <vector>

#include "formats/common/parallel.hh"

namespace cowd::dscow {
namespace {

constexpr size_t kPagesAtOnce = 32;

}  // namespace

DiskBits::DiskBits(Disk& disk, const Geometry& geometry)
    : disk_(disk), geometry_(geometry), top_(geometry.top_bytes()), cache_(disk, geometry) {}

Task<> DiskBits::load() { co_await disk_.read_at(geometry_.top_offset, top_); }

Task<PagePtr> DiskBits::bits(uint64_t page) {
  PagePtr written = empty_page();
  if (exists(page)) written = co_await cache_.get(page);
  // Nothing may suspend from here on.
  if (!uncommitted_.touches(page)) co_return written;
  auto merged = std::make_shared<Buffer>(*written);
  uncommitted_.or_into(page, *merged);
  co_return merged;
}

Task<> DiskBits::commit(uint64_t seq, bool data_flushed) {
  if (!uncommitted_.freeze(seq)) co_return;
  std::exception_ptr failure;
  try {
    if (!data_flushed) {
      flushes_++;
      co_await disk_.flush();
    }
    co_await write_pages();
    co_await publish_new_pages();
  } catch (...) {
    failure = std::current_exception();
  }
  if (failure) {
    failed_commits_++;
    uncommitted_.thaw();
    std::rethrow_exception(failure);
  }
  commits_++;
  uncommitted_.forget();
}

// They are durable afterwards. One page is one request, which costs less than a flush by itself.
Task<> DiskBits::write_pages() {
  flushes_++;
  if (uncommitted_.frozen().size() == 1) {
    const auto& [page, runs] = *uncommitted_.frozen().begin();
    co_await write_page(page, runs, true);
    co_return;
  }
  // Pointers into the frozen set, which stays as it is until the commit ends.
  std::vector<const Uncommitted::Pages::value_type*> pages;
  for (const auto& entry : uncommitted_.frozen()) pages.push_back(&entry);
  const std::function<Task<>(size_t)> write = [this, &pages](size_t i) {
    return write_page(pages[i]->first, pages[i]->second, false);
  };
  co_await for_each_parallel(pages.size(), kPagesAtOnce, write);
  co_await disk_.flush();
}

Task<> DiskBits::write_page(uint64_t page, const std::vector<Run>& runs, bool durably) {
  PagePtr written = empty_page();
  if (exists(page)) written = co_await cache_.get(page);
  auto bits = std::make_shared<Buffer>(*written);
  uint32_t low = kPageGranules, high = 0;
  for (const Run& run : runs) {
    set_bits(*bits, run.first, run.count);
    low = std::min(low, run.first);
    high = std::max(high, run.first + run.count);
  }
  uint64_t begin = 0, end = kBlock;
  if (exists(page)) {
    begin = round_down(low / 8, disk_.block_size());
    end = round_up((high + 7) / 8, disk_.block_size());
  }
  page_writes_++;
  const auto changed = std::span<const std::byte>(*bits).subspan(begin, end - begin);
  if (durably)
    co_await disk_.write_durably(geometry_.page_offset(page) + begin, changed);
  else
    co_await disk_.write_at(geometry_.page_offset(page) + begin, changed);
  cache_.put(page, bits);
}

Task<> DiskBits::publish_new_pages() {
  std::vector<uint64_t> pages;
  for (const auto& [page, runs] : uncommitted_.frozen())
    if (!exists(page)) pages.push_back(page);
  if (pages.empty()) co_return;
  Buffer top = top_;
  std::set<uint64_t> changed;  // offsets of device blocks
  for (const uint64_t page : pages) {
    set_bits(top, page, 1);
    changed.insert(round_down(page / 8, disk_.block_size()));
  }
  for (const uint64_t at : changed) {
    top_writes_++;
    const auto block = std::span<const std::byte>(top).subspan(at, disk_.block_size());
    co_await disk_.write_at(geometry_.top_offset + at, block);
  }
  flushes_++;
  co_await disk_.flush();
  top_ = std::move(top);
}

nlohmann::json DiskBits::stats() const {
  return {{"pages", count_bits(top_)},
          {"pages_cached", cache_.size()},
          {"page_reads", cache_.reads()},
          {"page_writes", page_writes_},
          {"top_writes", top_writes_},
          {"flushes", flushes_},
          {"commits", commits_},
          {"failed_commits", failed_commits_},
          {"uncommitted_granules", uncommitted_.granules()}};
}

Task<PagePtr> MemoryBits::bits(uint64_t page) {
  const auto found = pages_.find(page);
  if (found == pages_.end()) co_return empty_page();
  co_return std::make_shared<const Buffer>(*found->second);
}

void MemoryBits::add(uint64_t first, uint64_t count, uint64_t) {
  while (count != 0) {
    const uint64_t offset = first % kPageGranules;
    const uint64_t part = std::min<uint64_t>(count, kPageGranules - offset);
    std::shared_ptr<Buffer>& page = pages_[first / kPageGranules];
    if (!page) page = std::make_shared<Buffer>(kBlock);
    set_bits(*page, offset, part);
    first += part;
    count -= part;
  }
}

void MemoryBits::copy_to(Bits& other) const {
  for (const auto& [page, bits] : pages_)
    for (uint64_t at = 0; at < kPageGranules;) {
      const uint64_t end = run_end(*bits, at, kPageGranules);
      if (get_bit(*bits, at)) other.add(page * kPageGranules + at, end - at, 0);
      at = end;
    }
}

Task<> MemoryBits::commit(uint64_t, bool) { co_return; }

nlohmann::json MemoryBits::stats() const {
  uint64_t granules = 0;
  for (const auto& [page, bits] : pages_) granules += count_bits(*bits);
  return {{"pages", pages_.size()}, {"promoted_granules", granules}};
}

}  // namespace cowd::dscow
