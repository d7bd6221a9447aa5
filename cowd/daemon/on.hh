// SPDX-License-Identifier: GPL-2.0-or-later
// Awaiting work that runs on another strand.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cowd/daemon/signal_event.hh"
#include "formats/plugin.hh"

namespace cowd {

// Runs `task` on `executor` and resumes the caller on its own.
template <typename T>
Task<T> on(boost::asio::any_io_executor executor, Task<T> task) {
  co_return co_await boost::asio::co_spawn(std::move(executor), std::move(task),
                                           boost::asio::use_awaitable);
}

// Runs all of `tasks` at once on the caller's strand and returns when all have ended, or
// after `limit`: those that have not go on by themselves then, and are counted in what it
// gives. They must not throw.
inline Task<size_t> all_of(std::vector<Task<>> tasks,
                           std::optional<std::chrono::milliseconds> limit = {}) {
  auto executor = co_await boost::asio::this_coro::executor;
  auto left = std::make_shared<size_t>(tasks.size());
  auto over = std::make_shared<bool>(false);
  auto ended = std::make_shared<SignalEvent>(executor);
  for (auto& task : tasks)
    boost::asio::co_spawn(executor, std::move(task), [left, ended](std::exception_ptr) {
      --*left;
      ended->notify();
    });
  boost::asio::steady_timer timer(executor);
  if (limit) {
    timer.expires_after(*limit);
    timer.async_wait([over, ended](boost::system::error_code aborted) {
      *over = !aborted;
      ended->notify();
    });
  }
  while (*left && !*over) co_await ended->wait();
  co_return *left;
}

}  // namespace cowd
