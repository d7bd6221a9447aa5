// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/async_io.hh"

#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

#include "cowd/core/async_io_op.hh"
#include "cowd/core/errno_name.hh"

namespace cowd {

namespace asio = boost::asio;

namespace {

// An operation and the coroutine that waits for it.
template <typename Handler>
struct Waiting : IoOp {
  using Executor = asio::associated_executor_t<Handler>;

  explicit Waiting(Handler h)
      : handler(std::move(h)),
        work(asio::make_work_guard(asio::get_associated_executor(handler))) {}

  // The guard goes with the handler: the io_context may end as soon as that has run.
  void complete(int64_t result) override {
    const auto executor = work.get_executor();
    const bool later = failed_to_begin;
    auto resume = [waiter = std::move(handler), guard = std::move(work), result]() mutable {
      std::move(waiter)(result);
    };
    delete this;
    // At once, if this thread may: a post would have the reactor look at everything before.
    if (later)
      asio::post(executor, std::move(resume));
    else
      asio::dispatch(executor, std::move(resume));
  }

  Handler handler;
  asio::executor_work_guard<Executor> work;
};

template <typename Begin>
Task<int64_t> submit(IoOp::Kind kind, int fd, uint64_t offset, void* buffer, uint32_t len,
                     Begin begin) {
  return asio::async_initiate<const asio::use_awaitable_t<>, void(int64_t)>(
      [=](auto handler) {
        auto* op = new Waiting<decltype(handler)>(std::move(handler));
        op->kind = kind;
        op->fd = fd;
        op->offset = offset;
        op->buffer = buffer;
        op->len = len;
        begin(op);
      },
      asio::use_awaitable);
}

}  // namespace

Task<int64_t> AsyncIo::read(int fd, uint64_t offset, void* buffer, uint32_t len) {
  return submit(IoOp::Kind::read, fd, offset, buffer, len, [this](IoOp* op) { begin(op); });
}

Task<int64_t> AsyncIo::write(int fd, uint64_t offset, const void* buffer, uint32_t len) {
  return submit(IoOp::Kind::write, fd, offset, const_cast<void*>(buffer), len,
                [this](IoOp* op) { begin(op); });
}

Task<int64_t> AsyncIo::write_durably(int fd, uint64_t offset, const void* buffer, uint32_t len) {
  return submit(IoOp::Kind::write_durably, fd, offset, const_cast<void*>(buffer), len,
                [this](IoOp* op) { begin(op); });
}

Task<int64_t> AsyncIo::sync(int fd) {
  return submit(IoOp::Kind::sync, fd, 0, nullptr, 0, [this](IoOp* op) { begin(op); });
}

std::shared_ptr<AsyncIo> make_async_io(asio::io_context& io, IoEngine engine) {
  if (engine == IoEngine::threads) return make_thread_io();
  int error = 0;
  if (auto ring = make_uring_io(io, &error)) return ring;
  if (engine == IoEngine::uring)
    throw system_error(error, "io_uring is not to be had on this host");
  return make_thread_io();
}

}  // namespace cowd
