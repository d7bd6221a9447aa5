// SPDX-License-Identifier: GPL-2.0-or-later
// What a session sends, what the kernel refuses, and writes that found no room.
#include <boost/asio/post.hpp>

#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/daemon/error_id.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/session.hh"
#include "cowd/daemon/text.hh"
#include "libdmu/dmu.h"

namespace cowd {

namespace asio = boost::asio;

namespace {

constexpr std::chrono::milliseconds kMemoryRetry{20};

bool is_push(const dmu_msg& msg) {
  return msg.id == 0 && (msg.type == DMU_MSG_MAP || msg.type == DMU_MSG_BITMAP);
}

}  // namespace

void Session::send(const dmu_msg& msg) { send(OutMessage{msg, {}}); }

// All answers that are ready by the time the strand gets to it go in one write().
void Session::send(OutMessage message) {
  outbox_.add(std::move(message));
  if (flush_posted_) return;
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
  auto now = std::chrono::steady_clock::now();
  if (no_space_since_ == std::chrono::steady_clock::time_point{}) no_space_since_ = now;
  bool expired =
      settings_.no_space_timeout.count() && now - no_space_since_ >= settings_.no_space_timeout;
  bool wait =
      msg.error == ENOSPC && settings_.no_space == SessionSettings::NoSpace::wait && !expired;
  std::string destination = text("destination ", msg.write_dest);
  auto destinations = image_.destinations();
  if (msg.write_dest < destinations.size() && destinations[msg.write_dest].disk)
    destination = destinations[msg.write_dest].disk->name();
  report(msg.error == ENOSPC ? "no-space" : "kernel-error",
         text("A write to sectors ", msg.sector, " to ", msg.sector + msg.len - 1, " of ", device_,
              " failed on ", destination, " (", errno_text(msg.error), "). ",
              wait ? "It waits until there is room there: enlarge what lies under it."
                   : "It fails with an error for whoever wrote."),
         space_errors_);
  if (!wait) return send(dmu_msg_fail(msg.id, msg.error));
  no_space_.insert(msg.id);
  arm_no_space_timer();
}

void Session::arm_no_space_timer() {
  if (std::exchange(no_space_armed_, true)) return;
  no_space_timer_.expires_after(settings_.no_space_retry);
  no_space_timer_.async_wait([self = shared_from_this()](boost::system::error_code cancelled) {
    self->no_space_armed_ = false;
    if (!cancelled && self->state_ != State::ending) self->retry_no_space();
  });
}

// Those that find no room again come back as another ERROR; if none does until the
// next look, the trouble is over.
void Session::retry_no_space() {
  if (no_space_.empty()) {
    no_space_since_ = {};
    return;
  }
  for (uint64_t id : std::exchange(no_space_, {})) send(dmu_msg_retry(id));
  arm_no_space_timer();
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
