// SPDX-License-Identifier: GPL-2.0-or-later
// What a session sends, what the kernel refuses, and writes that found no room.
#include <algorithm>
#include <boost/asio/post.hpp>

#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/core/units.hh"
#include "cowd/daemon/error_id.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/session.hh"
#include "cowd/daemon/text.hh"
#include "libdmu/dmu.h"

namespace cowd {

namespace asio = boost::asio;

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kMemoryRetry{20};
// A write that is tried again and finds no room has said so by then.
constexpr std::chrono::milliseconds kSettled{1000};

bool is_push(const dmu_msg& msg) {
  return msg.id == 0 && (msg.type == DMU_MSG_MAP || msg.type == DMU_MSG_BITMAP);
}

}  // namespace

void Session::send(const dmu_msg& msg) { send(OutMessage{msg, {}}); }

// All answers that are ready by the time the strand gets to it go in one write().
void Session::send(OutMessage message) {
  outbox_.add(std::move(message));
  if (flush_posted_ || sends_many_) return;
  flush_posted_ = true;
  asio::post(executor_, [self = shared_from_this()] {
    self->flush_posted_ = false;
    self->flush_outbox();
    self->changed_.notify();
  });
}

void Session::flush_outbox() {
  if (broken_ || !channel_ || outbox_.empty()) return;
  if (first_answer_.count() < 0 && count_.faults + count_.leaf_faults > 0)
    first_answer_ = std::chrono::duration_cast<std::chrono::microseconds>(
        std::chrono::steady_clock::now() - started_);
  count_.answers += outbox_.size();
  try {
    for (auto& each : outbox_.send(*channel_)) refused(std::move(each));
  } catch (...) {
    channel_broken(std::current_exception());
  }
}

void Session::refused(Outbox::Refused refused) {
  const dmu_msg& msg = refused.message.msg;
  if (refused.code == ENOMEM) return send_again_later(std::move(refused.message));
  if (msg.type == DMU_MSG_INVALIDATE) {
    if (auto found = invalidations_.find(msg.id); found != invalidations_.end())
      found->second = refused.code;
    return changed_.notify();
  }
  if (is_push(msg)) {
    ++count_.pushes_refused;
    if (refused.code == ESTALE && msg.gen < gen_) return push_initial();
    // Otherwise the new generation comes with the next message that has one.
    push_again_ = push_again_ || refused.code == ESTALE;
    return;
  }
  if (refused.code == ENOENT) {  // answered already, or asked again: a race
    ++count_.late_answers;
    return;
  }
  char line[256];
  dmu_msg_format(&msg, line, sizeof line);
  report("kernel-error",
         text("The kernel refused an answer for ", device_, " with ", errno_name(refused.code),
              ": ", line, ". This is a defect of cowd or of the format's plugin."),
         kernel_errors_);
  if (msg.type == DMU_MSG_MAP || msg.type == DMU_MSG_BITMAP || msg.type == DMU_MSG_DATA)
    send(dmu_msg_fail(msg.id, EIO));
}

void Session::send_again_later(OutMessage message) {
  again_.push_back(std::move(message));
  if (again_.size() > 1) return;
  again_timer_.expires_after(kMemoryRetry);
  again_timer_.async_wait([self = shared_from_this()](boost::system::error_code cancelled) {
    auto messages = std::exchange(self->again_, {});
    if (cancelled) return;
    for (auto& each : messages) self->send(std::move(each));
  });
}

// ERROR(id): a write found its destination full and is held by the kernel.
void Session::no_space(const dmu_msg& msg) {
  std::string destination = "its store";
  auto destinations = image_.destinations();
  if (msg.write_dest < destinations.size() && destinations[msg.write_dest].disk)
    destination = destinations[msg.write_dest].disk->name();
  std::string what =
      text("A write to sectors ", msg.sector, " to ", msg.sector + msg.len - 1, " of ", device_);
  if (msg.error != ENOSPC || !may_wait_for_space()) {
    report(msg.error == ENOSPC ? "no-space" : "kernel-error",
           text(what, " failed on ", destination, " (", errno_text(msg.error),
                "). It fails with an error for whoever wrote."),
           msg.error == ENOSPC ? space_errors_ : kernel_errors_);
    gave_up_waiting_ = space_wait_.has_value();
    if (msg.error == ENOSPC) observer_.no_space();
    return send(dmu_msg_fail(msg.id, msg.error));
  }
  bool first = no_space_.empty();
  no_space_.insert(msg.id);
  if (first) wait_for_space(what, destination);
}

bool Session::may_wait_for_space() {
  if (settings_.no_space != SessionSettings::NoSpace::wait) return false;
  return !settings_.no_space_timeout.count() || !space_wait_ ||
         Clock::now() - no_space_since_ < settings_.no_space_timeout;
}

void Session::wait_for_space(const std::string& what, const std::string& destination) {
  if (!space_wait_) {
    space_wait_.emplace();
    space_wait_->since = std::chrono::system_clock::now();
    space_wait_->destination = destination;
    no_space_since_ = no_space_tried_ = Clock::now();
    report("no-space",
           text(what, " found no room on ", destination,
                ". It waits until there is some: make larger what lies under it, or free room "
                "there."),
           space_errors_);
  }
  arm_no_space_timer(no_space_tried_ + settings_.no_space_retry);
  observer_.no_space();
}

void Session::arm_no_space_timer(Clock::time_point when) {
  no_space_timer_.expires_at(when);
  no_space_timer_.async_wait([self = shared_from_this()](boost::system::error_code cancelled) {
    if (!cancelled && self->state_ != State::ending) self->no_space_due();
  });
}

void Session::no_space_due() {
  if (no_space_.empty() && !commit_short_)
    space_found();
  else
    retry_no_space();
}

// Those that find no room again come back, as another ERROR or a failed commit. If none has
// after a while, the trouble is over.
void Session::retry_no_space() {
  no_space_tried_ = Clock::now();
  for (uint64_t id : std::exchange(no_space_, {})) send(dmu_msg_retry(id));
  arm_no_space_timer(no_space_tried_ + std::min(settings_.no_space_retry, kSettled));
  commit_held_ = false;
  commit_due_ = commit_due_ || commit_short_;
  start_commit();
}

void Session::space_found() {
  auto waited =
      std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - no_space_since_);
  bool failed = std::exchange(gave_up_waiting_, false);
  std::string sentence =
      text(device_, failed ? " waits no longer" : " goes on", " after it has waited for room on ",
           space_wait_->destination, " for ", format_duration(waited),
           failed ? ": what finds none has failed." : ".");
  space_wait_.reset();
  log(Level::info, sentence, {device_, {}});
  observer_.event("no-space-over", sentence, {});
}

void Session::space_added() {
  if (space_wait_ && state_ != State::ending) retry_no_space();
}

std::optional<SpaceWait> Session::space_wait() const {
  if (!space_wait_) return std::nullopt;
  SpaceWait wait = *space_wait_;
  wait.writes = no_space_.size();
  wait.metadata = commit_short_;
  return wait;
}

void Session::channel_broken(std::exception_ptr error) {
  if (broken_) return;
  broken_ = std::move(error);
  if (channel_) channel_->cancel();
  changed_.notify();
}

// Into the log and the event ring, with one id, not more often than `limit` allows.
void Session::report(const std::string& type, const std::string& sentence, RateLimit& limit) {
  auto left_out = limit.pass();
  if (!left_out) return;
  std::string id = new_error_id();
  std::string whole =
      *left_out ? text(sentence, " (", *left_out, " more like it were not shown)") : sentence;
  log(Level::error, whole, {device_, id});
  observer_.event(type, whole, id);
}

}  // namespace cowd
