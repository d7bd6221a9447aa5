// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/common/event.hh"

#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <memory>
#include <utility>

namespace cowd {

namespace asio = boost::asio;

namespace {

// A handler that can only be moved, as something that can be copied.
template <typename Handler>
std::function<void()> waker(Handler handler) {
  auto work = asio::make_work_guard(asio::get_associated_executor(handler));
  auto held = std::make_shared<std::pair<Handler, decltype(work)>>(std::move(handler), work);
  return [held] { asio::post(held->second.get_executor(), [held] { std::move(held->first)(); }); };
}

}  // namespace

Task<> Event::wait() {
  co_await asio::async_initiate<const asio::use_awaitable_t<>, void()>(
      [this](auto handler) { waiting_.push_back(waker(std::move(handler))); }, asio::use_awaitable);
}

void Event::notify() {
  for (const std::function<void()>& wake : std::exchange(waiting_, {})) wake();
}

}  // namespace cowd
