// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/blocking.hh"

#include <condition_variable>
#include <memory>
#include <mutex>

#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/execution/context.hpp>
#include <boost/asio/execution_context.hpp>
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

struct Threads {
  std::mutex mutex;
  std::condition_variable resumed;
  size_t resuming = 0;
  bool stopping = false;
};

// Sees to it that an io_context does not end while one of our threads is about to
// post to it. A thread that hangs is not waited for: should it come back later, who
// waited is gone, and it keeps what it has to itself.
class ThreadService : public asio::execution_context::service {
 public:
  static asio::execution_context::id id;
  explicit ThreadService(asio::execution_context& context)
      : asio::execution_context::service(context) {}

  const std::shared_ptr<Threads> threads = std::make_shared<Threads>();

 private:
  void shutdown() override {
    std::unique_lock lock(threads->mutex);
    threads->stopping = true;
    threads->resumed.wait(lock, [this] { return threads->resuming == 0; });
  }
};

asio::execution_context::id ThreadService::id;

template <typename Handler>
struct Waiter {
  using Executor = asio::associated_executor_t<Handler>;

  explicit Waiter(Handler h)
      : handler(std::move(h)),
        guard(asio::make_work_guard(asio::get_associated_executor(handler))) {}

  // Deletes this, but in the handler: not if that never runs.
  void resume(bool ran) {
    const auto executor = guard.get_executor();
    asio::post(executor, [this, ran] {
      const std::unique_ptr<Waiter> self(this);
      std::move(handler)(ran);
    });
  }

  Handler handler;
  asio::executor_work_guard<Executor> guard;
};

template <typename Handler>
void resume_from_thread(const std::shared_ptr<Threads>& threads, Waiter<Handler>* waiter) {
  {
    std::lock_guard lock(threads->mutex);
    if (threads->stopping) return;
    ++threads->resuming;
  }
  waiter->resume(true);
  std::lock_guard lock(threads->mutex);
  --threads->resuming;
  threads->resumed.notify_all();
}

}  // namespace

Task<> run_on_thread(std::function<void()> work) {
  const bool ran = co_await asio::async_initiate<const asio::use_awaitable_t<>, void(bool)>(
      [&work](auto handler) {
        auto* waiter = new Waiter<decltype(handler)>(std::move(handler));
        auto& context = asio::query(waiter->guard.get_executor(), asio::execution::context);
        const auto threads = asio::use_service<ThreadService>(context).threads;
        const bool started = start_thread(
            [threads, waiter, work = std::move(work)]() mutable {
              work();
              work = nullptr;  // what it captured may be the io_context's
              resume_from_thread(threads, waiter);
            },
            kStack);
        if (!started) waiter->resume(false);
      },
      asio::use_awaitable);
  if (!ran)
    throw Error(EAGAIN,
                "No thread could be started: the process is at the limit of its tasks (TasksMax of "
                "its systemd unit, or ulimit -u); raise it.");
}

}  // namespace cowd
