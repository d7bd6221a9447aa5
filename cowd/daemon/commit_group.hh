// SPDX-License-Identifier: GPL-2.0-or-later
// Who waits for which commit. The rules (D1 and K7 of the design):
//
//  - One commit is under way at a time. begin() freezes what it covers; what is
//    read or asked after that waits for the next one.
//  - FLUSH comes after the kernel has flushed the destinations, so a commit for
//    FLUSHes alone covers no more than the highest of them asked for and need not
//    flush the data again. Any other commit covers all promotions read so far and
//    flushes the data first.
//  - Whoever asks for what a finished commit covers has it at once, save a DONE
//    without a promotion (seq 0): nobody knows when its data was flushed.
//
// Pure bookkeeping: no I/O, no clock, one strand.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "cowd/core/error.hh"

namespace cowd {

class CommitGroup {
 public:
  // Called once, with null when everything up to the seq asked for is durable.
  using Waiter = std::function<void(const Error* error)>;

  struct Round {
    uint64_t seq = 0;
    bool data_flushed = false;  // as Image::commit() wants it
    bool tell = false;          // COMMITTED(seq) has to be sent: no ACK says it
  };

  // A promotion was read.
  void promoted(uint64_t seq);
  // FLUSH(seq): the destinations are flushed.
  void flush(uint64_t seq, Waiter waiter);
  // DONE(seq): they are not. seq 0: nothing was promoted.
  void done(uint64_t seq, Waiter waiter);
  // Everything read so far.
  void all(Waiter waiter);

  // The commit to make now, if there is one to make and none under way. `due`: one
  // is wanted for whatever is dirty, even if nobody waits.
  std::optional<Round> begin(bool due);
  // How it went. Waiters are called from here.
  void finish(const Error* error);
  // There was no room for it: FLUSHes and DONEs wait for the next one, and whoever asked
  // by all() has the error.
  void finish_later(const Error& error);

  bool dirty() const { return read_ > committed_; }
  bool running() const { return running_; }
  bool waiting() const { return !pending_.empty(); }
  uint64_t read_seq() const { return read_; }
  uint64_t committed_seq() const { return committed_; }

 private:
  struct Pending {
    uint64_t seq;
    bool data_flushed;
    Waiter waiter;
    bool patient = true;  // may wait until there is room
  };

  bool covered(const Pending& pending) const;
  void add(Pending pending);
  void release(std::vector<Pending>& list);
  static void give_up(std::vector<Pending>& list, const Error& error);

  uint64_t read_ = 0;       // highest seq read
  uint64_t committed_ = 0;  // everything up to here is durable
  bool running_ = false;
  Round round_;
  std::vector<Pending> current_;  // covered by the commit under way
  std::vector<Pending> pending_;  // for the next
};

}  // namespace cowd
