// SPDX-License-Identifier: GPL-2.0-or-later
// A dscow store, and what uses it, as the tests see it: the kernel writes data into
// the store and tells of promotions; the daemon commits.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "formats/dscow/layout.hh"
#include "formats/dscow/operations.hh"
#include "tests/sim/run.hh"
#include "tests/sim/sim_disk.hh"

namespace cowd::sim {

inline constexpr uint64_t kKiB = 1ULL << 10, kMiB = 1ULL << 20, kGiB = 1ULL << 30,
                          kTiB = 1ULL << 40;

OpenRequest dscow_request(std::shared_ptr<Disk> top, std::shared_ptr<Disk> base = nullptr,
                          const std::string& boot = "boot-1");

// A base whose every block differs from every other's.
std::shared_ptr<SimDisk> make_base(uint64_t size);
// A store in a disk that is as large as it must be, with garbage where nothing is written.
std::shared_ptr<SimDisk> make_store(uint64_t size, std::shared_ptr<Disk> base = nullptr,
                                    const std::string& granule = "4K", uint32_t block_size = 512);

// The granules that an open image says are in the store, edges included.
Task<std::set<uint64_t>> promoted_granules(Image& image, uint64_t granule_bytes);
// The same, from the leaf answers that the kernel gets; without edges.
Task<std::set<uint64_t>> leaf_granules(Image& image);

class World {
 public:
  World(std::shared_ptr<SimDisk> top, std::shared_ptr<SimDisk> base);

  std::string boot = "boot-1";  // of the host that attaches

  Task<> attach(Durability durability = Durability::flush, bool reattach = false);
  // The kernel writes granules that are not in the store yet, then tells of them.
  Task<> promote(uint64_t first, uint64_t count = 1);
  // A FLUSH of the guest: destinations, then a commit of all that was told.
  Task<> flush();
  // The daemon's timer.
  Task<> timer();
  Task<> detach();
  // After a failure the guest writes again what no commit has covered.
  Task<> rewrite_uncommitted();

  // What data the granule gets with its promotion.
  Bytes data_of(uint64_t granule) const;
  bool holds_its_data(const SimDisk& store, uint64_t granule) const;

  Image& image() { return *image_; }
  bool attached() const { return image_ != nullptr; }
  SimDisk& top() { return *top_; }
  const dscow::Geometry& geometry() const { return geometry_; }
  uint64_t last_seq() const { return seq_; }
  const std::set<uint64_t>& acknowledged() const { return acknowledged_; }
  // What was acknowledged when mark n was made in top()'s log.
  const std::set<uint64_t>& acknowledged_at(uint64_t mark) const { return history_.at(mark); }
  const std::set<uint64_t>& told() const { return told_; }

 private:
  Task<> write_data(uint64_t granule);
  void acknowledge(uint64_t seq);

  std::shared_ptr<SimDisk> top_;
  std::shared_ptr<SimDisk> base_;
  dscow::Geometry geometry_;
  std::unique_ptr<Image> image_;
  uint64_t seq_ = 0;
  std::map<uint64_t, uint64_t> uncommitted_;  // granule, seq
  std::set<uint64_t> told_;
  std::set<uint64_t> acknowledged_;
  std::vector<std::set<uint64_t>> history_;
};

}  // namespace cowd::sim
