// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/blocking.hh"

#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "cowd/core/error.hh"
#include "cowd/core/thread.hh"

namespace cowd {

namespace asio = boost::asio;

namespace {

// Ample for libdevmapper and libudev, little enough for mlockall().
constexpr size_t kStack = 512 * 1024;

}  // namespace

Task<> run_on_thread(std::function<void()> work) {
  const bool ran = co_await asio::async_initiate<const asio::use_awaitable_t<>, void(bool)>(
      [&work](auto handler) {
        auto guard = asio::make_work_guard(asio::get_associated_executor(handler));
        auto waiter = std::make_shared<decltype(handler)>(std::move(handler));
        auto resume = [guard, waiter](bool ok) {
          asio::post(guard.get_executor(), [waiter, ok] { std::move (*waiter)(ok); });
        };
        const bool started = start_thread(
            [resume, work = std::move(work)] {
              work();
              resume(true);
            },
            kStack);
        if (!started) resume(false);
      },
      asio::use_awaitable);
  if (!ran)
    throw Error(EAGAIN,
                "No thread could be started: the process is at the limit of its tasks (TasksMax of "
                "its systemd unit, or ulimit -u); raise it.");
}

}  // namespace cowd
