// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/cowctl/progress.hh"

#include <algorithm>
#include <cstdio>

#include <boost/asio/steady_timer.hpp>
#include <unistd.h>

namespace cowctl {

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kQuietStart = std::chrono::seconds(1);
constexpr auto kBetween = std::chrono::milliseconds(200);
constexpr auto kBetweenInLogs = std::chrono::seconds(1);

}  // namespace

// A timer drives the line, so that it also moves while nothing is reported; work
// that keeps the thread busy moves it by its reports.
struct ProgressLine::State : std::enable_shared_from_this<State> {
  State(Context& context, std::string text)
      : timer(context.io), what(std::move(text)), terminal(isatty(STDERR_FILENO) == 1) {
    wanted = !context.options.quiet && (terminal || context.options.progress);
    between = terminal ? std::chrono::milliseconds(kBetween) : kBetweenInLogs;
  }

  void arm() {
    timer.expires_at(next);
    timer.async_wait([weak = weak_from_this()](boost::system::error_code error) {
      auto self = weak.lock();
      if (!self || error) return;
      self->show();
      self->arm();
    });
  }

  void show() {
    const auto now = Clock::now();
    if (!wanted || now < next) return;
    next = now + between;
    const auto elapsed = std::chrono::duration_cast<std::chrono::milliseconds>(now - start);
    const std::string text = progress_text(what, done, total, elapsed);
    std::fprintf(stderr, terminal ? "\r%s\033[K" : "%s\n", text.c_str());
    std::fflush(stderr);
    shown = true;
  }

  boost::asio::steady_timer timer;
  std::string what;
  const bool terminal;
  bool wanted = false;
  bool shown = false;
  Clock::duration between{};
  const Clock::time_point start = Clock::now();
  Clock::time_point next = start + kQuietStart;
  uint64_t done = 0;
  uint64_t total = 0;
};

ProgressLine::ProgressLine(Context& context, std::string what)
    : state_(std::make_shared<State>(context, std::move(what))) {
  if (state_->wanted) state_->arm();
}

ProgressLine::~ProgressLine() {
  state_->timer.cancel();
  if (state_->shown && state_->terminal) std::fputs("\r\033[K", stderr);
}

void ProgressLine::update(uint64_t done, uint64_t total) {
  state_->done = done;
  state_->total = total;
  state_->show();
}

void ProgressLine::update(uint64_t done, uint64_t total, const std::string& what) {
  if (!what.empty()) state_->what = what;
  update(done, total);
}

std::string progress_text(const std::string& what, uint64_t done, uint64_t total,
                          std::chrono::milliseconds elapsed) {
  char text[64];
  if (total == 0)
    std::snprintf(text, sizeof text, ": %lld s", static_cast<long long>(elapsed.count() / 1000));
  else
    std::snprintf(text, sizeof text, ": %.1f %%",
                  100.0 * static_cast<double>(std::min(done, total)) / static_cast<double>(total));
  return what + text;
}

}  // namespace cowctl
