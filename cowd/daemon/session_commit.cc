// SPDX-License-Identifier: GPL-2.0-or-later
// Commits of a session: group commit on FLUSH and DONE, and one by timer.
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <cerrno>

#include "cowd/core/error.hh"
#include "cowd/daemon/session.hh"
#include "cowd/daemon/text.hh"
#include "libdmu/dmu.h"

namespace cowd {

namespace asio = boost::asio;

namespace {

// After the n-th failure in a row.
std::chrono::milliseconds back_off(unsigned failures, std::chrono::milliseconds interval) {
  constexpr std::chrono::milliseconds longest = std::chrono::seconds(30);
  return std::min(longest, interval * (1 << std::min(failures, 8U)));
}

}  // namespace

CommitGroup::Waiter Session::answer_when_durable(uint64_t id) {
  return [this, id](const Error* error) {
    send(error ? dmu_msg_fail(id, error->code()) : dmu_msg_ack(id));
  };
}

void Session::start_commit() {
  if (state_ != State::active || broken_ || commit_held_) return;
  auto round = commits_.begin(commit_due_);
  if (!round) return;
  commit_due_ = false;
  ++running_commits_;
  auto committing = [self = shared_from_this(), round = *round]() -> Task<> {
    co_await self->commit(round);
  };
  asio::co_spawn(executor_, std::move(committing), asio::detached);
}

Task<> Session::commit(CommitGroup::Round round) {
  std::optional<Error> failure;
  try {
    co_await image_.commit(round.seq, round.data_flushed);
  } catch (const Error& error) {
    failure = error;
  } catch (const std::exception& error) {
    failure = Error(EIO, text("The format of ", device_, " failed: ", error.what()));
  }
  sends_many_ = true;
  // What fails while this session ends waits for the next one, as the kernel asks it again.
  bool wait = failure && (state_ == State::ending || commit_waits_for_space(*failure));
  commit_short_ = wait;
  if (failure && !wait) {
    commit_failed(*failure);
  } else if (!failure) {
    ++count_.commits;
    commit_failures_ = 0;
    if (round.tell) send(dmu_msg_committed(round.seq));
  }
  if (wait)
    commits_.finish_later(*failure);
  else
    commits_.finish(failure ? &*failure : nullptr);
  sends_many_ = false;
  flush_outbox();
  --running_commits_;
  start_commit();
  if (commits_.dirty() && !commit_timer_armed_)
    arm_commit_timer(back_off(commit_failures_, settings_.commit_interval));
  changed_.notify();
}

// True if it is made again when there may be room; until then no other is begun.
bool Session::commit_waits_for_space(const Error& error) {
  if (error.code() != ENOSPC) return false;
  if (!may_wait_for_space()) {
    gave_up_waiting_ = space_wait_.has_value();
    observer_.no_space();
    return false;
  }
  ++count_.commit_failures;
  commit_held_ = true;
  std::string destination = "its store";
  for (const Destination& each : image_.destinations())
    if (each.writable && each.disk) destination = each.disk->name();
  wait_for_space(text("The metadata of ", device_), destination);
  return true;
}

void Session::commit_failed(const Error& error) {
  ++count_.commit_failures;
  ++commit_failures_;
  report("commit-failed",
         text("The metadata of ", device_, " could not be made durable. ", error.what(),
              " Writes that were not flushed are safe only as long as this host runs; cowd tries "
              "again."),
         commit_errors_);
}

void Session::arm_commit_timer(std::chrono::milliseconds delay) {
  commit_timer_armed_ = true;
  commit_timer_.expires_after(delay);
  commit_timer_.async_wait([self = shared_from_this()](boost::system::error_code cancelled) {
    self->commit_timer_armed_ = false;
    if (cancelled || !self->commits_.dirty()) return;
    self->commit_due_ = true;
    self->start_commit();
  });
}

Task<> Session::commit_all() {
  auto self = shared_from_this();
  while (!drain() && !broken_) co_await changed_.wait();
  if (broken_) std::rethrow_exception(broken_);
  auto outcome = std::make_shared<std::optional<std::optional<Error>>>();
  commits_.all([outcome](const Error* error) {
    outcome->emplace(error ? std::optional<Error>(*error) : std::nullopt);
  });
  commit_held_ = false;
  start_commit();
  while (!*outcome) {
    if (state_ == State::ending && !running_commits_)
      throw Error(ENODEV, text("The device ", device_, " went away before its last commit."));
    co_await changed_.wait();
  }
  flush_outbox();
  if (**outcome) throw ***outcome;
}

}  // namespace cowd
