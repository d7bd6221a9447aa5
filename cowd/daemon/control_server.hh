// SPDX-License-Identifier: GPL-2.0-or-later
// The daemon's side of docs/control-protocol.md: who may talk, lines, one request at a
// time for each client, errors with an id. What a command does is the handler's.
//
// A client that hangs up gives back its place at once, also where its request hangs. The request
// goes on without it; what is given up then is the handler's to decide. Whoever asks for what
// hangs again and again, as a monitor does, is refused after a few times.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <exception>
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
  // Whoever asked, for as long as the request needs it. From any strand.
  class Caller {
   public:
    virtual ~Caller() = default;
    // Sends one line before the final one, such as {"progress": ...}. Throws Error(EPIPE) once
    // the client is gone.
    virtual Task<> tell(nlohmann::json line) = 0;
    virtual bool gone() const = 0;
  };
  // The "result" of `command`; throws Error. Asks `arguments` for what it knows, the
  // handler refuses the rest with done().
  using Handler = std::function<Task<nlohmann::json>(
      const std::string& command, JsonArguments& arguments, std::shared_ptr<Caller> caller)>;

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
  class Work;
  class Abandoned;
  using ClientPtr = std::shared_ptr<Client>;

  Task<> accept();
  Task<> answer(ClientPtr client, const nlohmann::json& request);
  Task<nlohmann::json> perform(ClientPtr client, const nlohmann::json& request);
  nlohmann::json refused(const nlohmann::json& request, std::exception_ptr error);
  Task<nlohmann::json> show_events(Client& client, JsonArguments& arguments);

  boost::asio::io_context& io_;
  unsigned max_clients_;
  EventRing& events_;
  Handler handler_;
  const std::shared_ptr<Abandoned> abandoned_;
  boost::asio::local::stream_protocol::acceptor acceptor_;
  std::string path_;
  std::atomic<unsigned> clients_{0};
  std::atomic<bool> stopping_{false};
};

}  // namespace cowd
