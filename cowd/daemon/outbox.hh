// SPDX-License-Identifier: GPL-2.0-or-later
// Answers on their way to the kernel, many in one write().
#pragma once

#include <deque>
#include <vector>

#include "cowd/daemon/channel.hh"
#include "cowd/daemon/messages.hh"

namespace cowd {

class Outbox {
 public:
  // Messages in one write() at most.
  static constexpr size_t kBatch = 256;

  struct Refused {
    OutMessage message;
    int code = 0;  // a positive errno
  };

  void add(OutMessage message) { waiting_.push_back(std::move(message)); }
  void add(const dmu_msg& msg) { waiting_.push_back({msg, {}}); }
  bool empty() const { return waiting_.empty(); }
  size_t size() const { return waiting_.size(); }

  // Sends all, in order; gives what the kernel refused. Throws Error(ENODEV).
  std::vector<Refused> send(Channel& channel);

 private:
  std::deque<OutMessage> waiting_;
};

}  // namespace cowd
