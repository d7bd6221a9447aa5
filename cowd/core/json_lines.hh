// SPDX-License-Identifier: GPL-2.0-or-later
// A stream socket that carries one JSON object a line, either side of the control
// protocol (docs/control-protocol.md).
#pragma once

#include <utility>

#include <optional>
#include <string>

#include <boost/asio/local/stream_protocol.hpp>
#include <nlohmann/json_fwd.hpp>

#include "formats/plugin.hh"

namespace cowd {

// One strand at a time; one read and one write may be under way at once.
class JsonLines {
 public:
  using Socket = boost::asio::local::stream_protocol::socket;
  static constexpr size_t kMaxLine = 1 << 20;

  explicit JsonLines(Socket socket) : socket_(std::move(socket)) {}

  // The next object; nothing at the end of the stream. Throws Error: EPROTO (not a
  // JSON object), EMSGSIZE (a line over kMaxLine), or the socket's.
  Task<std::optional<nlohmann::json>> read();
  Task<> write(const nlohmann::json& object);

  Socket& socket() { return socket_; }

 private:
  Socket socket_;
  std::string buffer_;
};

}  // namespace cowd
