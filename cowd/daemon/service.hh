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

// How many files the service manager has passed, from 3 on, for take_listening_socket().
int passed_files();
// The socket of cowd.socket, which then is the caller's, or -1: it goes on listening
// while no cowd runs, so that who asks meanwhile is answered by the next one. Once.
int take_listening_socket();
bool listens_at(int socket, const std::string& path);

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
