// SPDX-License-Identifier: GPL-2.0-or-later
// The daemon's side of docs/control-protocol.md: who may talk, lines, one request at a
// time for each client, errors with an id. What a command does is the handler's.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <utility>

#include "cowd/core/json.hh"
#include "cowd/core/json_lines.hh"
#include "cowd/daemon/event_ring.hh"
#include "formats/plugin.hh"

namespace cowd {

class ControlServer {
 public:
  // Sends one line before the final one, such as {"progress": ...}.
  using Tell = std::function<Task<>(const nlohmann::json&)>;
  // The "result" of `command`; throws Error. Asks `arguments` for what it knows, the
  // handler refuses the rest with done().
  using Handler = std::function<Task<nlohmann::json>(const std::string& command,
                                                     JsonArguments& arguments, const Tell& tell)>;

  ControlServer(boost::asio::io_context& io, unsigned max_clients, EventRing& events,
                Handler handler);

  // Replaces a socket that a dead cowd left. Mode 0600. Throws Error.
  void listen(const std::string& path);
  // Takes over a socket that somebody else made and that listens on after us.
  void listen_on(int fd);
  // No more clients, no more requests.
  void stop();

  // Serves one connected client until it goes; what listen() does with each.
  Task<> serve(JsonLines::Socket socket);

 private:
  class Client;

  Task<> accept();
  Task<> answer(Client& client, const nlohmann::json& request);
  Task<nlohmann::json> perform(Client& client, const nlohmann::json& request);
  Task<nlohmann::json> show_events(Client& client, JsonArguments& arguments);

  boost::asio::io_context& io_;
  unsigned max_clients_;
  EventRing& events_;
  Handler handler_;
  boost::asio::local::stream_protocol::acceptor acceptor_;
  std::string path_;
  std::atomic<unsigned> clients_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace cowd
