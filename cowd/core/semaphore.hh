// SPDX-License-Identifier: GPL-2.0-or-later
// A counting semaphore for coroutines, first come, first served.
#pragma once

#include <utility>

#include <functional>
#include <list>
#include <memory>
#include <mutex>

#include "formats/plugin.hh"

namespace cowd {

// Thread safe; waiters resume on their own executors.
class AsyncSemaphore {
 public:
  explicit AsyncSemaphore(unsigned count) : free_(count) {}

  // A unit that goes back when this object is destroyed.
  class Hold {
   public:
    explicit Hold(AsyncSemaphore* owner) : owner_(owner) {}
    Hold(Hold&& other) noexcept : owner_(std::exchange(other.owner_, nullptr)) {}
    Hold& operator=(Hold&&) = delete;
    ~Hold() {
      if (owner_) owner_->release();
    }

   private:
    AsyncSemaphore* owner_;
  };
  Task<Hold> acquire();  // the semaphore must outlive the wait and the hold

 private:
  void release();

  std::mutex mutex_;
  unsigned free_;
  std::list<std::function<void()>> waiting_;
};

}  // namespace cowd
