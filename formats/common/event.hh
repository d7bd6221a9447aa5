// SPDX-License-Identifier: GPL-2.0-or-later
// Something that coroutines of one strand wait for.
#pragma once

#include <functional>
#include <list>

#include "formats/plugin.hh"

namespace cowd {

// A condition variable: wait() returns after the next notify(), so the caller looks again at
// what it waits for. Waiters go on later, each on its own executor, never within notify().
class Event {
 public:
  Task<> wait();
  void notify();

 private:
  std::list<std::function<void()>> waiting_;
};

}  // namespace cowd
