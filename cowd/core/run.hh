// SPDX-License-Identifier: GPL-2.0-or-later
// Runs one coroutine to its end on an io_context, for tools and tests.
#pragma once

#include <utility>

#include <exception>
#include <optional>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include "cowd/core/error.hh"

namespace cowd {

// Gives what `task` returns, throws what it throws; other work on `io` runs meanwhile.
template <typename T>
T run_to_end(boost::asio::io_context& io, boost::asio::awaitable<T> task) {
  std::exception_ptr error;
  bool ended = false;
  std::conditional_t<std::is_void_v<T>, char, std::optional<T>> value{};
  if constexpr (std::is_void_v<T>)
    boost::asio::co_spawn(io, std::move(task), [&](std::exception_ptr e) {
      error = e;
      ended = true;
    });
  else
    boost::asio::co_spawn(io, std::move(task), [&](std::exception_ptr e, T v) {
      error = e;
      ended = true;
      if (!e) value.emplace(std::move(v));
    });
  io.restart();
  while (!ended && io.run_one() > 0) {
  }
  if (error) std::rethrow_exception(error);
  if (!ended) throw Error(EINTR, "The work was stopped before it had ended.");
  if constexpr (!std::is_void_v<T>) return std::move(*value);
}

}  // namespace cowd
