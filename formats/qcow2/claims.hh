// SPDX-License-Identifier: GPL-2.0-or-later
// Host clusters that are spoken for in memory, whatever the refcounts on disk say: intervals.
#pragma once

#include <cstdint>
#include <map>

namespace cowd::qcow2 {

class Claims {
 public:
  void add(uint64_t first, uint64_t count);
  void remove(uint64_t first, uint64_t count);
  bool has(uint64_t cluster) const { return end_of(cluster) != cluster; }
  // The end of the interval that holds `cluster`; `cluster` itself if none does.
  uint64_t end_of(uint64_t cluster) const;
  // The first one from `cluster` on; UINT64_MAX if there is none.
  uint64_t next(uint64_t cluster) const;
  uint64_t count() const;
  bool empty() const { return intervals_.empty(); }

 private:
  std::map<uint64_t, uint64_t> intervals_;  // first to end; none touches another
};

}  // namespace cowd::qcow2
