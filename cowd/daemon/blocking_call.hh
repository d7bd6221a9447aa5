// SPDX-License-Identifier: GPL-2.0-or-later
// Awaiting a function that may block: `co_await blocking(dm::suspend, name)`.
#pragma once

#include <functional>
#include <tuple>
#include <utility>

#include "cowd/core/blocking.hh"

namespace cowd {

// Calls `function` (a function or a member function) with copies of `args` on a
// thread of its own. The closure is made in here, not where the caller awaits: GCC 12
// copies a closure that is a temporary of a co_await expression bit by bit, and then
// frees what it captured twice.
template <typename Function, typename... Args>
auto blocking(Function function, const Args&... args) {
  auto work = [function, copies = std::make_tuple(args...)] {
    return std::apply([&](const auto&... each) { return std::invoke(function, each...); }, copies);
  };
  return off_strand(std::move(work));
}

}  // namespace cowd
