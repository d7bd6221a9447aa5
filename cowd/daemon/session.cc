// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/session.hh"

#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <nlohmann/json.hpp>

#include "cowd/core/error.hh"
#include "cowd/daemon/error_id.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/text.hh"
#include "libdmu/dmu.h"

namespace cowd {

namespace asio = boost::asio;

namespace {

constexpr size_t kReadBatch = 256;

// "a read of sectors 8 to 15"
std::string describe(const dmu_msg& msg) {
  const char* what = "a request for";
  if (msg.type == DMU_MSG_FAULT)
    what = msg.flags & DMU_F_WRITE ? "a write to" : "a read of";
  else if (msg.type == DMU_MSG_DISCARD)
    what = "a discard of";
  else if (msg.type == DMU_MSG_ZERO)
    what = "zeroes for";
  return text(what, " sectors ", msg.sector, " to ", msg.sector + msg.len - 1);
}

}  // namespace

Session::Session(asio::any_io_executor executor, std::unique_ptr<Channel> channel, Image& image,
                 SessionSettings settings, SessionObserver& observer, std::string device)
    : executor_(executor),
      channel_(std::move(channel)),
      image_(image),
      settings_(settings),
      observer_(observer),
      device_(std::move(device)),
      gen_(channel_->generation()),
      changed_(executor),
      commit_timer_(executor),
      again_timer_(executor),
      no_space_timer_(executor),
      started_(std::chrono::steady_clock::now()) {}

Task<Session::End> Session::run() {
  auto self = shared_from_this();
  while (state_ != State::ending && !broken_) {
    // Faults that do not fit stay in the kernel, and so do the guests that wait.
    while (backlog_.size() >= kMaxBacklog && state_ != State::ending) co_await changed_.wait();
    co_await channel_->readable();
    if (state_ != State::ending) drain();
  }
  co_await end_requests();
  std::exception_ptr why = broken_;
  channel_.reset();
  if (!why) co_return End::stopped;
  try {
    std::rethrow_exception(why);
  } catch (const Error& error) {
    if (error.code() == ENODEV) co_return End::device_gone;
    throw;
  }
}

// Takes what the kernel has to say. False if it has more than we have room for.
bool Session::drain() {
  std::array<dmu_msg, kReadBatch> batch;
  try {
    while (backlog_.size() < kMaxBacklog) {
      size_t count = channel_->receive(batch);
      for (size_t i = 0; i < count; ++i) handle(batch[i]);
      if (count < batch.size()) break;
    }
  } catch (...) {
    channel_broken(std::current_exception());
  }
  start_requests();
  start_commit();
  return backlog_.size() < kMaxBacklog;
}

void Session::handle(const dmu_msg& msg) {
  ++count_.messages;
  if (msg.gen > gen_) {
    gen_ = msg.gen;
    if (push_again_) push_initial();
  }
  switch (msg.type) {
    case DMU_MSG_PROMOTED:
      ++count_.promotions;
      image_.promoted(promotion_of(msg));
      commits_.promoted(msg.seq);
      if (commits_.dirty() && !commit_timer_armed_) arm_commit_timer(settings_.commit_interval);
      break;
    case DMU_MSG_FLUSH:
      ++count_.flushes;
      commits_.flush(msg.seq, answer_when_durable(msg.id));
      break;
    case DMU_MSG_DONE:
      ++count_.dones;
      commits_.done(msg.seq, answer_when_durable(msg.id));
      break;
    case DMU_MSG_REPLAY_DONE: replay_done(); break;
    case DMU_MSG_INVALIDATED:
      if (auto found = invalidations_.find(msg.id); found != invalidations_.end())
        found->second = 0;
      changed_.notify();
      break;
    case DMU_MSG_ERROR: no_space(msg); break;
    default: request(msg);
  }
}

// FAULT, DISCARD, ZERO.
void Session::request(const dmu_msg& msg) {
  switch (msg.type) {
    case DMU_MSG_FAULT: ++(msg.flags & DMU_F_LEAF ? count_.leaf_faults : count_.faults); break;
    case DMU_MSG_DISCARD: ++count_.discards; break;
    case DMU_MSG_ZERO: ++count_.zeroes; break;
    default:
      report("kernel-error",
             text("The kernel sent a message of type ", msg.type, " for ", device_,
                  ", which this cowd does not know. Is dm-userspace.ko newer "
                  "than cowd?"),
             kernel_errors_);
      return;
  }
  backlog_.push_back(msg);
}

void Session::start_requests() {
  while (state_ == State::active && !backlog_.empty() &&
         running_requests_ < settings_.max_requests) {
    ++running_requests_;
    auto serving = [self = shared_from_this(), msg = backlog_.front()]() -> Task<> {
      co_await self->serve(msg);
    };
    backlog_.pop_front();
    asio::co_spawn(executor_, std::move(serving), asio::detached);
  }
}

void Session::replay_done() {
  if (state_ != State::replaying) return;
  if (!image_.forgets_on_reattach()) return become_active();
  ++running_requests_;
  auto forgetting = [self = shared_from_this()]() -> Task<> { co_await self->forget(); };
  asio::co_spawn(executor_, std::move(forgetting), asio::detached);
}

// What an earlier daemon gave and nobody used yet, this one knows nothing of.
Task<> Session::forget() {
  try {
    co_await invalidate({0, image_.sectors()});
    if (state_ == State::replaying) become_active();
  } catch (...) {
    channel_broken(std::current_exception());
  }
  --running_requests_;
  start_requests();
  start_commit();
  changed_.notify();
}

void Session::become_active() {
  state_ = State::active;
  push_initial();
  observer_.replayed();
  changed_.notify();
}

// Also when an earlier push came too late; what is still there refuses it again.
void Session::push_initial() {
  push_again_ = false;
  if (state_ != State::active) return;
  for (auto& answer : image_.initial())
    if (can_push(answer)) send(push_message(gen_, std::move(answer)));
}

Task<> Session::serve(dmu_msg msg) {
  std::exception_ptr error;
  try {
    auto messages = co_await resolve(msg);
    for (auto& message : messages) send(std::move(message));
  } catch (...) {
    error = std::current_exception();
  }
  // What fails because this session ends is the next one's: the kernel asks it again.
  if (error && state_ != State::ending) request_failed(msg, error);
  --running_requests_;
  start_requests();
  changed_.notify();
}

Task<std::vector<OutMessage>> Session::resolve(const dmu_msg& msg) {
  Range range{msg.sector, msg.len};
  std::vector<Answer> answers;
  if (msg.type == DMU_MSG_FAULT)
    answers = co_await image_.resolve(range, fault_access(msg));
  else if (msg.type == DMU_MSG_DISCARD)
    answers = co_await image_.discard(range);
  else
    answers = co_await image_.zero(range);

  std::vector<OutMessage> messages;
  if (answers.empty() && msg.type != DMU_MSG_FAULT) {
    messages.push_back({dmu_msg_ack(msg.id), {}});
    co_return messages;
  }
  messages = fault_answers(msg.id, gen_, range, std::move(answers));
  if (messages.empty())
    throw Error(EIO, text("The format of ", device_, " gave no answer to ", describe(msg),
                          ": a defect of its plugin."));
  co_return messages;
}

void Session::request_failed(const dmu_msg& msg, const std::exception_ptr& error) {
  ++count_.request_failures;
  int code = EIO;
  std::string why = "an unknown failure";
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    code = e.code();
    why = e.what();
  } catch (const std::exception& e) {
    why = e.what();
  }
  // The bits of an overlay that was taken back meanwhile: nobody waits for them any more.
  const bool stale = code == ESTALE && msg.gen < gen_;
  if (!stale)
    report("io-error", text(describe(msg), " on ", device_, " failed. ", why), image_errors_);
  send(dmu_msg_fail(msg.id, code));
}

// After this nothing runs that holds the image or the channel.
Task<> Session::end_requests() {
  state_ = State::ending;
  backlog_.clear();
  commit_timer_.cancel();
  again_timer_.cancel();
  no_space_timer_.cancel();
  for (auto& [id, result] : invalidations_)
    if (result < 0) result = ENODEV;
  changed_.notify();
  while (running_requests_ || running_commits_ || flush_posted_ || !invalidations_.empty())
    co_await changed_.wait();
}

Task<> Session::stop() {
  auto self = shared_from_this();
  if (state_ == State::ending || broken_) co_return;
  bool committed = state_ == State::active;
  if (committed) {
    try {
      co_await commit_all();
      co_await image_.pause();
    } catch (const Error&) {
      // commit_failed() has said it, and the kernel tells the next daemon again; what pause() could
      // not do costs that one time, nothing else.
    }
  }
  state_ = State::ending;
  if (channel_) channel_->cancel();
  changed_.notify();
}

Task<> Session::invalidate(Range range) {
  auto self = shared_from_this();
  uint64_t id = next_invalidate_++;
  invalidations_[id] = -1;
  send(dmu_msg_invalidate(id, range.sector, range.len));
  while (invalidations_[id] < 0 && state_ != State::ending) co_await changed_.wait();
  int result = invalidations_[id];
  invalidations_.erase(id);
  changed_.notify();
  if (result)
    throw Error(result < 0 ? ENODEV : result, text("The kernel did not drop sectors ", range.sector,
                                                   " to ", range.end() - 1, " of ", device_, "."));
}

nlohmann::json Session::stats() const {
  nlohmann::json json = {
      {"messages", count_.messages},
      {"faults", count_.faults},
      {"leaf_faults", count_.leaf_faults},
      {"promotions", count_.promotions},
      {"flushes", count_.flushes},
      {"dones", count_.dones},
      {"discards", count_.discards},
      {"zeroes", count_.zeroes},
      {"answers", count_.answers},
      {"late_answers", count_.late_answers},
      {"pushes_refused", count_.pushes_refused},
      {"request_failures", count_.request_failures},
      {"commits", count_.commits},
      {"commit_failures", count_.commit_failures},
      {"seq_read", commits_.read_seq()},
      {"seq_committed", commits_.committed_seq()},
      {"requests_running", running_requests_},
      {"requests_waiting", backlog_.size()},
      {"waiting_for_space", no_space_.size()},
      {"generation", gen_},
  };
  if (first_answer_.count() >= 0) json["first_answer_us"] = first_answer_.count();
  return json;
}

}  // namespace cowd
