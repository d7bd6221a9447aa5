// SPDX-License-Identifier: GPL-2.0-or-later
// Looks after the room that stores take from file systems and thin pools: tells before it
// runs out, calls the host's program that adds some, and then has what waits tried again.
//
// One look for each file system, on a thread of its own, so that one that hangs is looked at
// no more and holds up no other; one lvs for all pools. Nothing here is on a device's strand
// but for the moment it takes to ask what the device lies on.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cowd/daemon/config.hh"
#include "cowd/daemon/device_manager.hh"
#include "cowd/daemon/event_ring.hh"
#include "cowd/daemon/rate_limit.hh"
#include "cowd/daemon/space.hh"
#include "cowd/daemon/space_hook.hh"
#include "cowd/daemon/space_state.hh"

namespace cowd {

class SpaceWatch {
 public:
  // All of them must outlive the io_context's last handler.
  SpaceWatch(boost::asio::io_context& io, DeviceManager& devices, EventRing& events,
             const Config::Space& settings);

  void start();
  // A store is full: looks now, or a moment after the last look. Any thread.
  void look_now();

 private:
  using Clock = std::chrono::steady_clock;
  struct Watched {
    explicit Watched(const Config::Space& settings) : state(settings) {}
    SpaceId id;
    std::vector<std::string> devices, waiting, files;
    SpaceState state;
    bool looking = false;
  };
  using WatchedPtr = std::shared_ptr<Watched>;

  Task<> run();
  Task<> sleep_until(Clock::time_point when, bool wake);
  void check_hook();
  Task<> look();
  void take_users(const std::vector<SpaceUser>& users);
  Task<> look_at(WatchedPtr watched);
  Task<> look_at_pools();
  void judge(const WatchedPtr& watched, const SpaceFigures& figures);
  Task<> run_hook(WatchedPtr watched);
  void hook_failed(const std::string& sentence);
  void complain(const std::string& sentence);

  boost::asio::strand<boost::asio::io_context::executor_type> strand_;
  DeviceManager& devices_;
  EventRing& events_;
  const Config::Space& settings_;

  // On strand_:
  std::map<SpaceId, WatchedPtr> watched_;
  bool looking_at_pools_ = false;
  bool asked_ = false;  // for a look
  boost::asio::steady_timer timer_;
  RateLimit complaints_{5, std::chrono::minutes(10)};
};

}  // namespace cowd
