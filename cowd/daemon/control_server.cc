// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/control_server.hh"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <nlohmann/json.hpp>

#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/daemon/error_id.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/on.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace asio = boost::asio;
using Socket = JsonLines::Socket;

namespace {

constexpr auto kAcceptPause = std::chrono::milliseconds(100);

bool peer_allowed(Socket& socket) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (getsockopt(socket.native_handle(), SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0) return false;
  // Another uid than root's: only for a cowd that runs as that, in tests.
  return peer.uid == 0 || peer.uid == geteuid();
}

nlohmann::json refusal(const Error& error, const std::string& id) {
  return {{"ok", false}, {"error", error_to_json(error, id)}};
}

}  // namespace

class ControlServer::Client {
 public:
  Client(ControlServer& server, Socket socket) : lines(std::move(socket)), server_(server) {
    ++server_.clients_;
  }
  ~Client() { --server_.clients_; }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  JsonLines lines;

 private:
  ControlServer& server_;
};

ControlServer::ControlServer(asio::io_context& io, unsigned max_clients, EventRing& events,
                             Handler handler)
    : io_(io),
      max_clients_(max_clients),
      events_(events),
      handler_(std::move(handler)),
      acceptor_(asio::make_strand(io)) {}

void ControlServer::listen(const std::string& path) {
  path_ = path;
  unlink(path.c_str());
  mode_t before = umask(0177);
  boost::system::error_code error;
  asio::local::stream_protocol::endpoint endpoint;
  try {
    endpoint = {path};
    acceptor_.open(endpoint.protocol());
    acceptor_.bind(endpoint);
    acceptor_.listen();
  } catch (const boost::system::system_error& failure) {
    error = failure.code();
  }
  umask(before);
  if (error)
    throw Error(error.value(),
                text("The control socket ", path, " cannot be made: ", error.message(),
                     ". Correct paths.socket, or make room "
                     "where it is to be."));
  asio::co_spawn(acceptor_.get_executor(), accept(), asio::detached);
}

void ControlServer::listen_on(int fd) {
  boost::system::error_code error;
  acceptor_.assign(asio::local::stream_protocol(), fd, error);
  if (error)
    throw Error(error.value(), text("The socket that cowd was started with cannot be used: ",
                                    error.message(), ". See systemctl status cowd.socket."));
  asio::co_spawn(acceptor_.get_executor(), accept(), asio::detached);
}

void ControlServer::stop() {
  stopping_ = true;
  asio::post(acceptor_.get_executor(), [this] {
    boost::system::error_code ignored;
    acceptor_.close(ignored);
  });
  if (!path_.empty()) unlink(path_.c_str());
}

Task<> ControlServer::accept() {
  while (!stopping_) {
    auto [error, socket] = co_await acceptor_.async_accept(asio::make_strand(io_),
                                                           asio::as_tuple(asio::use_awaitable));
    if (error == asio::error::operation_aborted) co_return;
    if (error) {  // no file descriptors left, for one
      asio::steady_timer pause(acceptor_.get_executor(), kAcceptPause);
      co_await pause.async_wait(asio::as_tuple(asio::use_awaitable));
      continue;
    }
    auto executor = socket.get_executor();
    asio::co_spawn(executor, serve(std::move(socket)), asio::detached);
  }
}

Task<> ControlServer::serve(Socket socket) {
  Client client(*this, std::move(socket));
  try {
    if (!peer_allowed(client.lines.socket())) {
      co_await client.lines.write(
          refusal(Error(EPERM, "Only root may talk to cowd."), new_error_id()));
      co_return;
    }
    if (clients_ > max_clients_) {
      co_await client.lines.write(refusal(Error(EBUSY, text("cowd serves ", max_clients_,
                                                            " clients already, as many as "
                                                            "control.max_clients allows.")),
                                          new_error_id()));
      co_return;
    }
    while (!stopping_) {
      auto request = co_await client.lines.read();
      if (!request) co_return;
      co_await answer(client, *request);
    }
  } catch (const Error& error) {
    // Not a line of ours, or the client went away in the middle.
    log(Level::debug, text("A control connection ended. ", error.what()));
  }
}

Task<> ControlServer::answer(Client& client, const nlohmann::json& request) {
  nlohmann::json final_line;
  std::optional<Error> failure;
  std::string guest_subject;
  try {
    final_line["result"] = co_await perform(client, request);
    final_line["ok"] = true;
  } catch (const GuestError& error) {
    failure = error;
    guest_subject = error.subject();
  } catch (const Error& error) {
    failure = error;
  } catch (const std::exception& error) {
    failure = Error(EIO, text("cowd failed in a way it should not: ", error.what()));
  }
  if (failure) {
    std::string id = new_error_id();
    std::string device;
    for (const char* key : {"device", "name", "spec", "path"})
      if (device.empty() && request.contains(key) && request[key].is_string())
        device = request[key].get<std::string>();
    log(Level::warning, failure->what(), {device, id});
    events_.add("refused", device, failure->what(), id);
    final_line = refusal(*failure, id);
    if (!guest_subject.empty())
      final_line["error"]["public"] =
          text(guest_subject, " is not available; the host's administrator finds the reason as ",
               id, ".");
  }
  bool too_long = false;
  try {
    co_await client.lines.write(final_line);
  } catch (const Error& error) {
    if (error.code() != EMSGSIZE) throw;
    too_long = true;
    failure = error;
  }
  if (too_long) co_await client.lines.write(refusal(*failure, new_error_id()));
}

Task<nlohmann::json> ControlServer::perform(Client& client, const nlohmann::json& request) {
  auto command = request.find("cmd");
  if (command == request.end() || !command->is_string())
    throw Error(EINVAL, "A request needs \"cmd\", the name of a command.");
  std::string name = command->get<std::string>();
  JsonArguments arguments(request, name);
  arguments.need_string("cmd");
  if (name == "events") co_return co_await show_events(client, arguments);
  Tell tell = [&client](const nlohmann::json& line) { return client.lines.write(line); };
  co_return co_await handler_(name, arguments, tell);
}

// With "follow": until the client goes away or cowd stops.
Task<nlohmann::json> ControlServer::show_events(Client& client, JsonArguments& arguments) {
  bool follow = arguments.flag("follow", false);
  uint64_t seen = arguments.number("since").value_or(0);
  arguments.done();
  auto executor = co_await asio::this_coro::executor;
  auto fresh = std::make_shared<SignalEvent>(executor);
  uint64_t subscription =
      events_.subscribe([fresh, executor] { asio::post(executor, [fresh] { fresh->notify(); }); });
  std::exception_ptr error;
  bool hung_up = false;
  // Whoever follows says nothing more: readable means that it is gone.
  auto watch = [&]() {
    client.lines.socket().async_wait(Socket::wait_read,
                                     [fresh, gone = &hung_up](boost::system::error_code failed) {
                                       if (failed == asio::error::operation_aborted) return;
                                       *gone = true;
                                       fresh->notify();
                                     });
  };
  try {
    if (follow) watch();
    for (;;) {
      for (const Event& event : events_.after(seen)) {
        nlohmann::json line;
        line["event"] = to_json(event);
        co_await client.lines.write(line);
        seen = event.number;
      }
      if (!follow || hung_up || stopping_) break;
      if (events_.last() == seen) co_await fresh->wait();
    }
  } catch (...) {
    error = std::current_exception();
  }
  events_.unsubscribe(subscription);
  if (follow && !hung_up) {
    boost::system::error_code ignored;
    client.lines.socket().cancel(ignored);
    co_await asio::post(executor, asio::use_awaitable);  // the aborted wait has run
  }
  if (error) std::rethrow_exception(error);
  co_return nlohmann::json::object();
}

}  // namespace cowd
