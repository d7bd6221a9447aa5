// SPDX-License-Identifier: GPL-2.0-or-later
// off_strand(): awaits a function that may block, on a thread of its own, so that
// neither a strand nor another caller's work waits behind it. For rare and slow
// things (opening a device, dm ioctls, udev cookies), not for I/O.
#pragma once

#include <utility>

#include <exception>
#include <functional>
#include <optional>
#include <type_traits>

#include "formats/plugin.hh"

namespace cowd {

// Runs `work` on a new thread and resumes the awaiting coroutine on its executor.
// The thread is detached: if it hangs for ever, only its awaiter does. Throws
// Error(EAGAIN) where no thread can be made.
Task<> run_on_thread(std::function<void()> work);

// Gives what `work` returns, throws what it throws. `work` owns what it captures: it
// may outlive the coroutine.
template <typename Work>
Task<std::invoke_result_t<Work>> off_strand(Work work) {
  using Result = std::invoke_result_t<Work>;
  struct Outcome {
    std::exception_ptr error;
    std::conditional_t<std::is_void_v<Result>, char, std::optional<Result>> value{};
  };
  auto outcome = std::make_shared<Outcome>();
  std::function<void()> run = [outcome, work = std::move(work)]() mutable {
    try {
      if constexpr (std::is_void_v<Result>)
        work();
      else
        outcome->value.emplace(work());
    } catch (...) {
      outcome->error = std::current_exception();
    }
  };
  co_await run_on_thread(std::move(run));
  if (outcome->error) std::rethrow_exception(outcome->error);
  if constexpr (!std::is_void_v<Result>) co_return std::move(*outcome->value);
}

}  // namespace cowd
