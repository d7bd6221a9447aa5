// SPDX-License-Identifier: GPL-2.0-or-later
// The client's side of the control protocol.
#pragma once

#include <utility>

#include <functional>
#include <string>

#include <boost/asio/any_io_executor.hpp>
#include <nlohmann/json_fwd.hpp>

#include "cowd/core/json_lines.hh"

namespace cowd {

inline constexpr const char* kControlSocket = "/run/cowd/control.sock";

class ControlClient {
 public:
  using OnLine = std::function<void(const nlohmann::json&)>;

  // Throws Error: ENOENT or ECONNREFUSED (no cowd there), EACCES (not root).
  static Task<ControlClient> connect(std::string socket_path);

  // Sends `request` and gives the "result" of its final line. `on_line` gets the
  // progress and event lines before it. Throws what the daemon refused as Refusal
  // (json.hh), its id at the end of the sentence; an Error with EPIPE, ECONNRESET or
  // EPROTO when cowd went away in the middle.
  Task<nlohmann::json> call(const nlohmann::json& request, const OnLine& on_line = {});

 private:
  explicit ControlClient(JsonLines lines) : lines_(std::move(lines)) {}
  JsonLines lines_;
};

}  // namespace cowd
