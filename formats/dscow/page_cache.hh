// SPDX-License-Identifier: GPL-2.0-or-later
// Pages of the bitmap as they were last read or written, the least recently used
// forgotten first. At most kCachedPages of them: 4 MiB an image, and only of pages
// that are in use.
#pragma once

#include <cstdint>
#include <list>
#include <unordered_map>
#include <utility>

#include "formats/dscow/bits.hh"
#include "formats/dscow/layout.hh"
#include "formats/plugin.hh"

namespace cowd::dscow {

inline constexpr size_t kCachedPages = 1024;

class PageCache {
 public:
  PageCache(Disk& disk, const Geometry& geometry) : disk_(disk), geometry_(geometry) {}

  // Reads the page if need be. If put() gives the page a new content meanwhile, it
  // is that one: a slow read never brings back what a commit has overtaken.
  Task<PagePtr> get(uint64_t page);
  // What has been written to the page.
  void put(uint64_t page, PagePtr bits);

  size_t size() const { return order_.size(); }
  uint64_t reads() const { return reads_; }

 private:
  struct Load {
    uint64_t page;
    PagePtr newer;
  };
  using Entry = std::pair<uint64_t, PagePtr>;

  Disk& disk_;
  const Geometry geometry_;
  std::list<Entry> order_;  // most recently used first
  std::unordered_map<uint64_t, std::list<Entry>::iterator> index_;
  std::list<Load> loads_;  // under way
  uint64_t reads_ = 0;
};

}  // namespace cowd::dscow
