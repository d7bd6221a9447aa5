// SPDX-License-Identifier: GPL-2.0-or-later
// One disk over its life, all of it simulated but what is tested: a guest's processors over the
// kernel of session_kernel.hh, sessions of cowd with the real plugins, disks of sim_disk.hh.
// Daemons are killed, machines lose their power, disks fail, stall and are full, at moments that a
// seed decides; also while what was lost is being recovered. After each the guest finds what it
// flushed, and of what it did not flush each sector old or new; the image's own check finds no
// error.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cowd/daemon/session.hh"
#include "formats/plugin.hh"
#include "tests/sim/files.hh"
#include "tests/sim/session_kernel.hh"
#include "tests/sim/sim_disk.hh"

namespace cowd::sim {

// What images are made.
struct SessionVariety {
  std::string name;
  std::string format;
  Options options;
  uint64_t bytes;     // of the disk
  uint64_t base = 0;  // of what it lies on; 0: nothing
  uint32_t block_size = 512;
  Durability durability = Durability::flush;
};

const std::vector<SessionVariety>& session_varieties();

struct SessionCounts {
  uint64_t operations = 0;       // of guests
  uint64_t disk_operations = 0;  // what they and cowd did to disks
  uint64_t messages = 0;         // between the kernel and sessions, both ways
  uint64_t machine_crashes = 0, daemon_crashes = 0, hand_overs = 0, detaches = 0;
  uint64_t crashes_in_recovery = 0;  // of either kind
  uint64_t failures = 0, stalls = 0, full_disks = 0;
  uint64_t steps = 0;  // of the event loops; the same for the same seed
  SessionCounts& operator+=(const SessionCounts& other);
};

// An event loop whose work can be dropped, as a killed program's is.
class Reactor : public boost::asio::io_context {
 public:
  Reactor() : boost::asio::io_context(1) {}
  ~Reactor() { shutdown(); }
  bool step() {
    restart();
    return poll_one() != 0;
  }
};

class SessionWorld {
 public:
  SessionWorld(const SessionVariety& variety, uint64_t seed);
  ~SessionWorld();
  SessionWorld(const SessionWorld&) = delete;
  SessionWorld& operator=(const SessionWorld&) = delete;

  // Throws std::logic_error where something is not as it must be.
  void play();
  const SessionCounts& counts() const { return counts_; }
  // Says what happens.
  void trace();

 private:
  class Cowd;

  void make_image();
  void make_machine();
  void use_disks();
  void attach();
  void play_episode();
  // Until `done`; false: the machine crashed.
  template <typename Done>
  bool go_on(Done done, bool events);
  bool step();
  void something_happens();
  void plan();
  void daemon_ends();
  void drop_daemon();
  void kill_daemon();
  void crash();
  bool recover();
  void check_image(bool clean);
  void new_disk();
  void finish_counts();
  void detach();
  bool is_recovering() const;
  void say(const std::string& what) const;
  std::vector<std::shared_ptr<SimDisk>> disks() const;

  Task<> processor(Range part, int steps);
  Task<> one_step(Range part, uint64_t& next);
  template <typename Operation>
  Task<> insist(Operation operation);
  void spawn(Task<> task);

  const SessionVariety& variety_;
  const FormatDescriptor& format_;
  Random random_;
  SessionCounts counts_;
  std::shared_ptr<Files> files_;
  std::shared_ptr<SimDisk> top_, base_;
  std::string boot_ = "boot-0", host_ = "host-a";
  uint64_t boots_ = 0;

  std::unique_ptr<Reactor> machine_;
  std::unique_ptr<SessionKernel> kernel_;
  std::unique_ptr<Guest> guest_;
  std::unique_ptr<Cowd> cowd_;
  std::chrono::nanoseconds cowd_starts_{0};
  bool begun_ = false;   // an attach of this machine has touched the image
  bool leaked_ = false;  // space may belong to nobody
  bool faulty_ = false;  // a disk may fail or be full
  Bytes beneath_;        // what the guest's disk held before it wrote to it
  int processors_ = 0;
  uint64_t next_event_ = 0;
  std::chrono::nanoseconds full_until_{0};
  std::chrono::nanoseconds idle_{0};
  std::chrono::nanoseconds progress_{0};  // when something was last done
  std::string failure_;
  bool traced_ = false;
};

}  // namespace cowd::sim
