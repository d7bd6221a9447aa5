// SPDX-License-Identifier: GPL-2.0-or-later
// The service manager's side: readiness, the watchdog, and the end.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <string>

namespace cowd {

// sd_notify(3); silent where no service manager listens.
void notify_ready(const std::string& status);
void notify_stopping();

// Pings the service manager from the reactor at half its interval: a reactor that is
// stuck misses the ping, and cowd is killed and started again, which loses nothing.
class Watchdog {
 public:
  explicit Watchdog(boost::asio::io_context& io);
  void start();
  void stop();

 private:
  void ping();

  boost::asio::steady_timer timer_;
  std::chrono::microseconds interval_{0};  // 0: nobody watches
};

}  // namespace cowd
