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
#include <map>
#include <mutex>
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

// Of one and the same request: so many may hang whose clients have gone.
constexpr unsigned kMostAbandoned = 8;
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

// Nobody is there to be answered.
class HungUp : public Error {
 public:
  HungUp() : Error(EPIPE, "The client hung up.") {}
};

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

// Requests that go on though their clients hung up, by what they asked for. Thread safe.
class ControlServer::Abandoned {
 public:
  void add(const std::string& request) {
    const std::lock_guard lock(mutex_);
    ++counts_[request];
  }
  void drop(const std::string& request) {
    const std::lock_guard lock(mutex_);
    if (--counts_[request] == 0) counts_.erase(request);
  }
  // Throws Error(EBUSY).
  void check(const std::string& request) const {
    const std::lock_guard lock(mutex_);
    const auto found = counts_.find(request);
    if (found != counts_.end() && found->second >= kMostAbandoned)
      throw Error(EBUSY, text(found->second,
                              " requests like this one hang whose clients have given up: what they "
                              "wait for does not answer. cowd's log, or \"cowctl list\", says "
                              "which device that may be."));
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, unsigned> counts_;
};

// One request. All of it on the client's strand, but for what Caller has.
class ControlServer::Work : public Caller, public std::enable_shared_from_this<Work> {
 public:
  Work(asio::any_io_executor executor, ClientPtr client, nlohmann::json asked,
       std::shared_ptr<Abandoned> abandoned)
      : request(std::move(asked)),
        changed(executor),
        executor_(std::move(executor)),
        client_(std::move(client)),
        abandoned_(std::move(abandoned)) {
    auto found = request.find("cmd");
    if (found == request.end() || !found->is_string())
      throw Error(EINVAL, "A request needs \"cmd\", the name of a command.");
    command = found->get<std::string>();
    arguments.emplace(request, command);
    arguments->need_string("cmd");
  }

  Task<> tell(nlohmann::json line) override {
    return on(executor_, tell_here(shared_from_this(), std::move(line)));
  }
  bool gone() const override { return gone_; }
  void hang_up() {
    gone_ = true;
    client_.reset();
    if (!ended) abandoned_->add(request.dump());
    counted_ = !ended;
    changed.notify();
  }
  void end(std::exception_ptr failed, nlohmann::json gave) {
    error = failed;
    result = std::move(gave);
    ended = true;
    if (counted_) abandoned_->drop(request.dump());
    changed.notify();
  }

  const nlohmann::json request;
  std::string command;
  std::optional<JsonArguments> arguments;
  SignalEvent changed;
  bool ended = false;
  std::exception_ptr error;
  nlohmann::json result;

 private:
  static Task<> tell_here(std::shared_ptr<Work> work, nlohmann::json line) {
    const ClientPtr client = work->client_;
    if (!client) throw HungUp();
    co_await client->lines.write(line);
  }

  const asio::any_io_executor executor_;
  ClientPtr client_;
  const std::shared_ptr<Abandoned> abandoned_;
  bool counted_ = false;  // there
  std::atomic<bool> gone_{false};
};

ControlServer::ControlServer(asio::io_context& io, unsigned max_clients, EventRing& events,
                             Handler handler)
    : io_(io),
      max_clients_(max_clients),
      events_(events),
      handler_(std::move(handler)),
      abandoned_(std::make_shared<Abandoned>()),
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
  const auto client = std::make_shared<Client>(*this, std::move(socket));
  try {
    if (!peer_allowed(client->lines.socket())) {
      co_await client->lines.write(
          refusal(Error(EPERM, "Only root may talk to cowd."), new_error_id()));
      co_return;
    }
    if (clients_ > max_clients_) {
      co_await client->lines.write(refusal(Error(EBUSY, text("cowd serves ", max_clients_,
                                                             " clients already, as many as "
                                                             "control.max_clients allows.")),
                                           new_error_id()));
      co_return;
    }
    while (!stopping_) {
      auto request = co_await client->lines.read();
      if (!request) co_return;
      co_await answer(client, *request);
    }
  } catch (const Error& error) {
    // Not a line of ours, or the client went away in the middle.
    log(Level::debug, text("A control connection ended. ", error.what()));
  }
}

Task<> ControlServer::answer(ClientPtr client, const nlohmann::json& request) {
  nlohmann::json final_line;
  std::exception_ptr error;
  try {
    final_line["result"] = co_await perform(client, request);
    final_line["ok"] = true;
  } catch (const HungUp&) {
    throw;
  } catch (...) {
    error = std::current_exception();
  }
  if (error) final_line = refused(request, error);
  std::optional<Error> too_long;
  try {
    co_await client->lines.write(final_line);
  } catch (const Error& failure) {
    if (failure.code() != EMSGSIZE) throw;
    too_long = failure;
  }
  if (too_long) co_await client->lines.write(refusal(*too_long, new_error_id()));
}

// The final line of a request that failed, told to the log and the events as well.
nlohmann::json ControlServer::refused(const nlohmann::json& request, std::exception_ptr error) {
  std::optional<Error> failure;
  std::string guest_subject;
  try {
    std::rethrow_exception(error);
  } catch (const GuestError& refusal) {
    failure = refusal;
    guest_subject = refusal.subject();
  } catch (const Error& refusal) {
    failure = refusal;
  } catch (const std::exception& defect) {
    failure = Error(EIO, text("cowd failed in a way it should not: ", defect.what()));
  }
  std::string id = new_error_id();
  std::string device;
  for (const char* key : {"device", "name", "spec", "path"})
    if (device.empty() && request.contains(key) && request[key].is_string())
      device = request[key].get<std::string>();
  log(Level::warning, failure->what(), {device, id});
  events_.add("refused", device, failure->what(), id);
  nlohmann::json line = refusal(*failure, id);
  if (!guest_subject.empty())
    line["error"]["public"] = text(
        guest_subject, " is not available; the host's administrator finds the reason as ", id, ".");
  return line;
}

Task<nlohmann::json> ControlServer::perform(ClientPtr client, const nlohmann::json& request) {
  const auto executor = co_await asio::this_coro::executor;
  auto work = std::make_shared<Work>(executor, client, request, abandoned_);
  if (work->command == "events") co_return co_await show_events(*client, *work->arguments);
  abandoned_->check(request.dump());
  asio::co_spawn(executor, handler_(work->command, *work->arguments, work),
                 [this, work](std::exception_ptr error, nlohmann::json result) {
                   work->end(error, std::move(result));
                   if (work->gone() && error) refused(work->request, error);
                 });
  // For its hang-up alone: it may have sent its next request already.
  client->lines.socket().async_wait(Socket::wait_error, [work](boost::system::error_code failed) {
    if (failed != asio::error::operation_aborted) work->hang_up();
  });
  while (!work->ended && !work->gone()) co_await work->changed.wait();
  if (!work->ended) throw HungUp();
  boost::system::error_code ignored;
  client->lines.socket().cancel(ignored);
  if (work->error) std::rethrow_exception(work->error);
  co_return std::move(work->result);
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
