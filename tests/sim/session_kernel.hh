// SPDX-License-Identifier: GPL-2.0-or-later
// The kernel of kernel_model.hh with the channel of the uAPI document (dm-userspace.h) between it
// and a session of cowd:
//
//   - a question waits until a daemon answers it, however many die meanwhile; one that was read
//     and not answered is asked again under a new id, of the next daemon or after an INVALIDATE;
//   - a new channel gets what is uncommitted once what was under way has ended, then REPLAY_DONE,
//     then the questions;
//   - pushes of an older generation are refused with ESTALE, answers to unknown ids with ENOENT;
//   - a write that finds no room (ENOSPC) is held until RETRY or FAIL.
//
// What the document forbids a daemon is kept in violation(), for who runs the simulation.
#pragma once

#include <linux/dm-userspace.h>

#include <boost/asio/any_io_executor.hpp>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cowd/daemon/channel.hh"
#include "cowd/daemon/signal_event.hh"
#include "tests/sim/kernel_model.hh"

namespace cowd::sim {

class SessionKernel : public KernelModel {
 public:
  // Everything but the channel runs on `executor`, which outlives daemons.
  SessionKernel(boost::asio::any_io_executor executor, uint64_t seed);

  // The device is made, with its table.
  void create(const Image& image);
  bool created() const { return sectors_ != 0; }
  // For a daemon that runs on `executor`; one at a time. Closed when it is destroyed.
  std::unique_ptr<Channel> open_channel(boost::asio::any_io_executor executor);
  // The daemon is dead, and with it its channel.
  void close_channel();
  // Removes the device: the channel reads ENODEV.
  void remove();

  // "" if the daemon has kept to the document.
  const std::string& violation() const { return violation_; }
  size_t questions() const { return questions_.size(); }
  uint64_t messages() const { return messages_; }
  // Called with each message and what became of it (an errno), and which way it went.
  std::function<void(bool to_daemon, const dmu_msg& msg, int result)> seen;

 private:
  class Line;
  struct Question {
    dmu_msg msg{};
    bool read = false, answered = false, retry = false, mapped = false;
    int error = 0;
    std::optional<Data> data;
    SignalEvent* changed = nullptr;
  };
  using QuestionPtr = std::shared_ptr<Question>;
  // What is to be read next: a question, or a message that has no answer.
  struct Item {
    QuestionPtr question = nullptr;
    dmu_msg msg{};
  };

  Task<> ask(Range range, Access access) override;
  Task<> ask_leaf(KeptPtr overlay, uint64_t sector) override;
  Task<> ask_discard(Range range) override;
  Task<bool> ask_zero(Range range) override;
  void tell() override;
  Task<> commit(uint64_t seq, bool data_flushed) override;
  Task<> done(const Extent& map, Range range, uint64_t seq) override;
  Task<bool> put(Use& use, uint32_t dest, uint64_t sector,
                 std::span<const std::byte> data) override;
  Task<> turn() override;
  void remembered() override;
  bool readable() const { return !queue_.empty() || (replayed_ && has_untold()); }

  // Waits for the answer. Throws Error where it is FAIL.
  Task<QuestionPtr> question(dmu_msg msg);
  void enqueue(Item item);
  void ask_again(const QuestionPtr& question);
  void answered(const QuestionPtr& question, int error = 0);
  QuestionPtr find_question(uint64_t id);
  Task<> replay(uint64_t channel);
  Task<> tell_drained(uint64_t channel, uint64_t id, Range range);

  size_t receive(std::span<dmu_msg> messages);
  int take_message(const dmu_msg& msg);
  int take(const dmu_msg& msg);
  int take_map(const dmu_msg& msg);
  int take_bitmap(const dmu_msg& msg);
  int take_ack(const dmu_msg& msg);
  int take_invalidate(const dmu_msg& msg);
  bool is_stale(const Question& question) const { return question.msg.gen != gen_; }

  boost::asio::any_io_executor executor_;
  Line* line_ = nullptr;   // the open channel
  uint64_t channel_ = 0;   // its number
  bool replayed_ = false;  // it has read REPLAY_DONE, or will
  bool removed_ = false;
  uint64_t next_id_ = 1;
  uint64_t read_seq_ = 0;  // the highest seq that this channel has read
  std::deque<Item> queue_;
  std::list<QuestionPtr> questions_;
  uint64_t messages_ = 0;
  std::string violation_;
};

}  // namespace cowd::sim
