// SPDX-License-Identifier: GPL-2.0-or-later
// What has been made so far, to be undone in reverse order if a later step fails.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "cowd/daemon/log.hh"
#include "cowd/daemon/text.hh"
#include "formats/plugin.hh"

namespace cowd {

class Undo {
 public:
  // `what` completes "... could not be undone": "the dm device".
  void add(std::string what, std::function<Task<>()> step) {
    steps_.push_back({std::move(what), std::move(step)});
  }

  // Runs all of it. A step that fails is logged and holds up no other.
  Task<> run(const std::string& device) {
    while (!steps_.empty()) {
      auto [what, step] = std::move(steps_.back());
      steps_.pop_back();
      try {
        co_await step();
      } catch (const std::exception& error) {
        log(Level::error,
            text("After the failed attach of ", device, " ", what, " could not be undone. ",
                 error.what()),
            {device, {}});
      }
    }
  }

 private:
  std::vector<std::pair<std::string, std::function<Task<>()>>> steps_;
};

}  // namespace cowd
