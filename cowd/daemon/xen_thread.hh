// SPDX-License-Identifier: GPL-2.0-or-later
// The one thread that talks to Xen: its libraries block, and xenstored may be slow. A
// thread that hangs there holds up the disks that are being added, nothing else.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cowd/daemon/signal_event.hh"
#include "cowd/daemon/xen_host.hh"
#include "formats/plugin.hh"

namespace cowd {

class XenThread {
 public:
  using Changed = std::function<void(std::vector<std::string>)>;

  // Takes `host` over; `changed` is called on the thread.
  XenThread(std::unique_ptr<XenHost> host, Changed changed);
  // Does not wait for a call that hangs: such a thread is left to itself.
  ~XenThread();
  XenThread(const XenThread&) = delete;
  XenThread& operator=(const XenThread&) = delete;

  // Awaits work(XenHost&) on the thread, from a strand. Gives what it returns, throws
  // what it throws. `work` is copied; name it before the co_await (blocking_call.hh).
  template <typename Work>
  Task<std::invoke_result_t<Work, XenHost&>> call(Work work) {
    using Result = std::invoke_result_t<Work, XenHost&>;
    struct Outcome {
      explicit Outcome(boost::asio::any_io_executor executor) : ended(std::move(executor)) {}
      SignalEvent ended;
      bool done = false;
      std::exception_ptr error;
      std::optional<Result> value;
    };
    auto executor = co_await boost::asio::this_coro::executor;
    auto outcome = std::make_shared<Outcome>(executor);
    std::function<void(XenHost&)> run = [work, outcome, executor](XenHost& host) {
      try {
        outcome->value.emplace(work(host));
      } catch (...) {
        outcome->error = std::current_exception();
      }
      boost::asio::post(executor, [outcome] {
        outcome->done = true;
        outcome->ended.notify();
      });
    };
    queue(std::move(run));
    while (!outcome->done) co_await outcome->ended.wait();
    if (outcome->error) std::rethrow_exception(outcome->error);
    co_return std::move(*outcome->value);
  }

 private:
  // Outlives this object if the thread hangs.
  struct State {
    std::unique_ptr<XenHost> host;
    Changed changed;
    std::mutex mutex;
    std::deque<std::function<void(XenHost&)>> work;
    bool stopping = false;
    int wake = -1;  // an eventfd
    ~State();
  };

  void queue(std::function<void(XenHost&)> work);
  static void run(std::shared_ptr<State> state);
  static bool tell_changes(State& state);

  std::shared_ptr<State> state_;
};

}  // namespace cowd
