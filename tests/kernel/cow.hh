// SPDX-License-Identifier: GPL-2.0-or-later
// A daemon on a thread that does what cowd does with dscow: one overlay over the
// whole device, a bit a granule, durable when committed. It can be killed: what
// was not committed is then forgotten, as in a crash of the daemon.
#pragma once

#include <atomic>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "tests/kernel/target.hh"

namespace dmutest {

// What outlives a daemon: the bits on its disk.
struct CowStore {
  uint32_t granule = kGranule;  // sectors
  uint32_t flags = 0;           // DMU_F_SYNC, DMU_F_VOLATILE for the overlay
  std::set<uint64_t> durable;   // granules
};

class Cow {
 public:
  // The device has destination 0 to read from and destination 1 to write to.
  Cow(const Target& target, CowStore& store);
  ~Cow() { kill(); }
  Cow(const Cow&) = delete;
  Cow& operator=(const Cow&) = delete;
  // Closes the channel at once, whatever was read or not.
  void kill();
  // Fails the case if the daemon saw something that it should not.
  void check();
  uint64_t count(uint32_t type) const { return counts_[type]; }

 private:
  void serve();
  void handle(Channel& channel, const dmu_msg& msg);
  void answer_fault(Channel& channel, const dmu_msg& msg);
  void answer_leaf(Channel& channel, const dmu_msg& msg);
  void promoted(const dmu_msg& msg);
  void commit();

  const Target& target_;
  CowStore& store_;
  std::set<uint64_t> pending_;  // promoted, not durable
  bool replaying_ = true;
  int stop_;
  std::mutex mutex_;
  std::string error_;
  std::atomic<uint64_t> counts_[64] = {};
  std::thread thread_;
};

}  // namespace dmutest
