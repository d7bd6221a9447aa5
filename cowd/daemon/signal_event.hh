// SPDX-License-Identifier: GPL-2.0-or-later
// Something that coroutines of one strand wait for.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <utility>

#include "formats/plugin.hh"

namespace cowd {

// A condition variable for one strand: wait() returns at the next notify(), so the
// caller looks again at what it waits for.
class SignalEvent {
 public:
  explicit SignalEvent(boost::asio::any_io_executor executor) : timer_(std::move(executor)) {
    timer_.expires_at(boost::asio::steady_timer::time_point::max());
  }
  Task<> wait() { co_await timer_.async_wait(boost::asio::as_tuple(boost::asio::use_awaitable)); }
  void notify() { timer_.cancel(); }

 private:
  boost::asio::steady_timer timer_;
};

}  // namespace cowd
