// SPDX-License-Identifier: GPL-2.0-or-later
// One device served: a channel and an image. Knows nothing of the control socket,
// of provisioning or of other devices.
//
// States and orderings:
//
//  replaying  From the start until REPLAY_DONE is read. PROMOTED goes to the image,
//             whatever else arrives waits: nothing is resolved, allocated or
//             committed before the image knows all that an earlier daemon did. Then, if
//             the image wants it (forgets_on_reattach), the kernel drops its extents.
//  active     Each FAULT, DISCARD and ZERO has a coroutine of its own, so that a slow
//             one does not hold the others; at most max_requests of them, the rest
//             waits in a queue of kMaxBacklog, and when that is full in the kernel.
//             PROMOTED, FLUSH and DONE are taken in the order in which they are read.
//  ending     After stop() or when the device is gone. Requests under way run to
//             their end, as they hold the image; then run() returns.
//
// Where there is no room (settings.no_space = wait): an ERROR is held until RETRY, a commit
// that fails with ENOSPC is made again, and the FLUSHes and DONEs it was for wait; all of
// that every no_space_retry, and at once after space_added(). Only commit_all() does not wait.
//
// Memory: max_requests coroutines, kMaxBacklog messages (96 bytes each), and what
// the answers of those requests carry until the next write().
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "cowd/daemon/channel.hh"
#include "cowd/daemon/commit_group.hh"
#include "cowd/daemon/outbox.hh"
#include "cowd/daemon/rate_limit.hh"
#include "cowd/daemon/signal_event.hh"
#include "formats/plugin.hh"

namespace cowd {

struct SessionSettings {
  enum class NoSpace { wait, fail };

  std::chrono::milliseconds commit_interval{500};
  unsigned max_requests = 256;
  NoSpace no_space = NoSpace::wait;
  std::chrono::milliseconds no_space_retry{5000};
  std::chrono::milliseconds no_space_timeout{0};  // 0: for ever
};

// What a session tells its owner; called on its strand.
class SessionObserver {
 public:
  virtual ~SessionObserver() = default;
  virtual void replayed() = 0;
  // Something for the event ring: docs/control-protocol.md has the types. `id`: of
  // the failure, as in the log.
  virtual void event(const std::string& type, const std::string& sentence,
                     const std::string& id) = 0;
  // A destination is full, again or still: somebody may want to do something about it.
  virtual void no_space() = 0;
};

// Writes, or the metadata of earlier ones, wait for room.
struct SpaceWait {
  std::chrono::system_clock::time_point since;  // or since this session began, if later
  std::string destination;                      // what is full, as in the specification
  size_t writes = 0;                            // held by the kernel at this moment
  bool metadata = false;                        // a commit waits, with what was flushed
};

// All functions on the strand that is the executor.
class Session : public std::enable_shared_from_this<Session> {
 public:
  enum class End { device_gone, stopped };
  static constexpr size_t kMaxBacklog = 16384;

  // `image` and `observer` must outlive run(). `device`: a name for sentences.
  Session(boost::asio::any_io_executor executor, std::unique_ptr<Channel> channel, Image& image,
          SessionSettings settings, SessionObserver& observer, std::string device);

  // Serves until the device is gone or stop() is called. Throws Error when the
  // channel breaks otherwise. The channel is closed when this has returned.
  Task<End> run();

  // Reads what there is and makes everything read durable. Throws Error.
  Task<> commit_all();

  // Takes no more requests, commits, ends run(). The kernel keeps what has no
  // answer for the next session. Never throws: what goes wrong is logged.
  Task<> stop();

  // Drops the kernel's extents in `range`; returns when no I/O uses them any more.
  Task<> invalidate(Range range);

  // Something was done about what is full: what waits is tried again now.
  void space_added();
  std::optional<SpaceWait> space_wait() const;

  nlohmann::json stats() const;

 private:
  enum class State { replaying, active, ending };

  // session.cc: the loop
  bool drain();
  void handle(const dmu_msg& msg);
  void request(const dmu_msg& msg);
  void start_requests();
  void replay_done();
  Task<> forget();
  void become_active();
  void push_initial();
  Task<> serve(dmu_msg msg);
  Task<std::vector<OutMessage>> resolve(const dmu_msg& msg);
  void request_failed(const dmu_msg& msg, const std::exception_ptr& error);
  Task<> end_requests();

  // session_commit.cc
  CommitGroup::Waiter answer_when_durable(uint64_t id);
  void start_commit();
  Task<> commit(CommitGroup::Round round);
  bool commit_waits_for_space(const Error& error);
  void commit_failed(const Error& error);
  void arm_commit_timer(std::chrono::milliseconds delay);

  // session_answers.cc: what goes to the kernel, and what it refuses
  void send(OutMessage message);
  void send(const dmu_msg& msg);
  void flush_outbox();
  void refused(Outbox::Refused refused);
  void send_again_later(OutMessage message);
  void no_space(const dmu_msg& msg);
  bool may_wait_for_space();
  void wait_for_space(const std::string& what, const std::string& destination);
  void retry_no_space();
  void no_space_due();
  void space_found();
  void arm_no_space_timer(std::chrono::steady_clock::time_point when);
  void channel_broken(std::exception_ptr error);
  void report(const std::string& type, const std::string& sentence, RateLimit& limit);

  boost::asio::any_io_executor executor_;
  std::unique_ptr<Channel> channel_;
  Image& image_;
  SessionSettings settings_;
  SessionObserver& observer_;
  std::string device_;

  State state_ = State::replaying;
  std::exception_ptr broken_;  // why the channel is of no use any more
  uint64_t gen_;               // the last generation read
  bool push_again_ = false;    // initial extents were refused: wait for a new generation

  std::deque<dmu_msg> backlog_;
  unsigned running_requests_ = 0;
  unsigned running_commits_ = 0;
  SignalEvent changed_;  // a request or a commit ended, an answer came

  CommitGroup commits_;
  boost::asio::steady_timer commit_timer_;
  bool commit_timer_armed_ = false;
  bool commit_due_ = false;
  unsigned commit_failures_ = 0;  // in a row

  Outbox outbox_;
  bool flush_posted_ = false;
  bool sends_many_ = false;  // and flushes the outbox afterwards
  std::deque<OutMessage> again_;  // refused with ENOMEM
  boost::asio::steady_timer again_timer_;

  std::set<uint64_t> no_space_;  // ids of ERROR that wait for room
  bool commit_short_ = false;    // the last commit found no room
  bool commit_held_ = false;     // and the next one is not due yet
  boost::asio::steady_timer no_space_timer_;
  std::optional<SpaceWait> space_wait_;  // `writes` and `metadata` are not kept here
  bool gave_up_waiting_ = false;         // no_space_timeout is over
  std::chrono::steady_clock::time_point no_space_since_, no_space_tried_;

  uint64_t next_invalidate_ = 1;
  std::map<uint64_t, int> invalidations_;  // id to: -1 waiting, 0 done, or an errno

  RateLimit image_errors_{5, std::chrono::seconds(10)};
  RateLimit kernel_errors_{5, std::chrono::seconds(10)};
  RateLimit commit_errors_{3, std::chrono::seconds(30)};
  RateLimit space_errors_{4, std::chrono::seconds(30)};

  struct Counters {
    uint64_t messages = 0, faults = 0, leaf_faults = 0, promotions = 0, flushes = 0, dones = 0,
             discards = 0, zeroes = 0, answers = 0, pushes_refused = 0, commits = 0,
             commit_failures = 0, request_failures = 0, late_answers = 0;
  } count_;
  std::chrono::steady_clock::time_point started_;
  std::chrono::microseconds first_answer_{-1};  // after the start
};

}  // namespace cowd
