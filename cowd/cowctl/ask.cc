// SPDX-License-Identifier: GPL-2.0-or-later
#include <utility>

#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>

#include "cowd/core/control_client.hh"
#include "cowd/core/json.hh"
#include "cowd/core/run.hh"
#include "cowd/cowctl/context.hh"
#include "cowd/cowctl/progress.hh"

namespace cowctl {

using cowd::ControlClient;
using Clock = std::chrono::steady_clock;

namespace {

constexpr auto kBetweenAttempts = std::chrono::milliseconds(100);
// A cowd that died, and that nothing listens for, is back within this, or stays away.
constexpr auto kRestart = std::chrono::seconds(3);

void show_progress(ProgressLine& line, const json& message) {
  const auto progress = message.find("progress");
  if (progress == message.end() || !progress->is_object()) return;
  line.update(progress->value("done", uint64_t{0}), progress->value("total", uint64_t{0}),
              progress->value("what", std::string()));
}

Task<std::optional<ControlClient>> connect(const std::string& socket) {
  co_return co_await ControlClient::connect(socket);
}

json call(Context& context, ControlClient& client, const json& request, const std::string& what) {
  ProgressLine line(context, what);
  return cowd::run_to_end(
      context.io, client.call(request, [&](const json& message) { show_progress(line, message); }));
}

// Stops what runs on the io_context when its time has come.
class Deadline {
 public:
  Deadline(boost::asio::io_context& io, std::chrono::seconds limit) : timer_(io, limit) {
    timer_.async_wait([&io, passed = passed_](boost::system::error_code error) {
      if (error) return;
      *passed = true;
      io.stop();
    });
  }
  bool passed() const { return *passed_; }
  Clock::time_point at() const { return timer_.expiry(); }

 private:
  boost::asio::steady_timer timer_;
  std::shared_ptr<bool> passed_ = std::make_shared<bool>(false);
};

Task<> pause_between_attempts() {
  boost::asio::steady_timer timer(co_await boost::asio::this_coro::executor, kBetweenAttempts);
  co_await timer.async_wait(boost::asio::use_awaitable);
}

}  // namespace

json ask(Context& context, const json& request, const std::string& what) {
  auto client = cowd::run_to_end(context.io, connect(context.options.socket));
  return call(context, *client, request, what);
}

std::optional<json> ask_if_attached(Context& context, const json& request,
                                    const std::string& what) {
  std::optional<ControlClient> client;
  try {
    client = cowd::run_to_end(context.io, connect(context.options.socket));
  } catch (const Error& e) {
    if (is_spec(context.options.target)) return std::nullopt;
    throw;
  }
  try {
    return call(context, *client, request, what);
  } catch (const Error& e) {
    // EPERM: cowd talks to root only, but who may read the image may look at it.
    const bool elsewhere = e.code() == ENODEV || e.code() == EPERM || e.code() == EPIPE;
    if (elsewhere && is_spec(context.options.target)) return std::nullopt;
    throw;
  }
}

json ask_within(Context& context, std::chrono::seconds limit, const json& request,
                const std::string& what) {
  Deadline deadline(context.io, limit);
  // When it counts as gone for good; once it was there, not before the end.
  auto gone = Clock::now() + kRestart;
  for (bool again = false;; again = true) {
    try {
      if (again) cowd::run_to_end(context.io, pause_between_attempts());
      auto client = cowd::run_to_end(context.io, connect(context.options.socket));
      gone = deadline.at();
      return call(context, *client, request, what);
    } catch (const cowd::Refusal&) {
      throw;
    } catch (const Error& e) {
      if (deadline.passed())
        throw Error(ETIMEDOUT, "cowd had no answer within " + std::to_string(limit.count()) +
                                   " s, " + what +
                                   " was given up; see its log (journalctl -u cowd).");
      const bool lost = e.code() == EPIPE || e.code() == ECONNRESET || e.code() == EPROTO;
      const bool refused = e.code() == ECONNREFUSED || (again && e.code() == ENOENT);
      const bool full = e.code() == EAGAIN;
      if (!lost && !full && !(refused && Clock::now() < gone)) throw;
    }
  }
}

json ask_lines(Context& context, const json& request, std::function<void(const json&)> on_line) {
  auto client = cowd::run_to_end(context.io, connect(context.options.socket));
  return cowd::run_to_end(context.io, client->call(request, on_line));
}

}  // namespace cowctl
