// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/semaphore.hh"

#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace cowd {

namespace asio = boost::asio;

namespace {

// A copyable wake-up of a handler that can only be moved.
template <typename Handler>
std::function<void()> waker(Handler handler) {
  auto work = asio::make_work_guard(asio::get_associated_executor(handler));
  auto held = std::make_shared<std::pair<Handler, decltype(work)>>(std::move(handler), work);
  return [held] { asio::post(held->second.get_executor(), [held] { std::move(held->first)(); }); };
}

}  // namespace

Task<AsyncSemaphore::Hold> AsyncSemaphore::acquire() {
  bool mine = false;
  {
    std::lock_guard lock(mutex_);
    if (free_ > 0) {
      --free_;
      mine = true;
    }
  }
  if (!mine)
    co_await asio::async_initiate<const asio::use_awaitable_t<>, void()>(
        [this](auto handler) {
          auto wake = waker(std::move(handler));
          {
            std::lock_guard lock(mutex_);
            if (free_ == 0) {
              waiting_.push_back(std::move(wake));
              return;
            }
            --free_;
          }
          wake();
        },
        asio::use_awaitable);
  co_return Hold(this);
}

// The unit of who leaves goes straight to who has waited longest.
void AsyncSemaphore::release() {
  std::function<void()> wake;
  {
    std::lock_guard lock(mutex_);
    if (waiting_.empty()) {
      ++free_;
      return;
    }
    wake = std::move(waiting_.front());
    waiting_.pop_front();
  }
  wake();
}

}  // namespace cowd
