// SPDX-License-Identifier: GPL-2.0-or-later
// Runs coroutines to their end, on an event loop of their own.
#pragma once

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <exception>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cowd/core/error.hh"
#include "formats/plugin.hh"

namespace cowd::sim {

// All at once, on one thread; the first exception is thrown when all have ended.
inline void run_all(std::vector<Task<>> tasks) {
  boost::asio::io_context loop(1);
  std::exception_ptr failure;
  for (Task<>& task : tasks)
    boost::asio::co_spawn(loop, std::move(task), [&failure](std::exception_ptr e) {
      if (e && !failure) failure = e;
    });
  loop.run();
  if (failure) std::rethrow_exception(failure);
}

inline void run(Task<> task) {
  std::vector<Task<>> tasks;
  tasks.push_back(std::move(task));
  run_all(std::move(tasks));
}

template <typename T>
T run(Task<T> task) {
  std::optional<T> result;
  boost::asio::io_context loop(1);
  std::exception_ptr failure;
  boost::asio::co_spawn(loop, std::move(task), [&](std::exception_ptr e, T value) {
    failure = e;
    if (!e) result.emplace(std::move(value));
  });
  loop.run();
  if (failure) std::rethrow_exception(failure);
  return std::move(*result);
}

// The errno and sentence of what a task throws; 0 and "" if it throws nothing.
template <typename T>
std::pair<int, std::string> failure_of(Task<T> task) {
  try {
    run(std::move(task));
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  return {0, ""};
}

}  // namespace cowd::sim
