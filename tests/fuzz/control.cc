// SPDX-License-Identifier: GPL-2.0-or-later
// What a client of the control socket says, through the server itself: whatever it is, the server
// ends with its client, and what it answers are objects, each request's last with "ok".
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/connect_pair.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <nlohmann/json.hpp>

#include "cowd/core/error.hh"
#include "cowd/core/spec.hh"
#include "cowd/daemon/commands.hh"
#include "cowd/daemon/control_server.hh"
#include "tests/fuzz/fail.hh"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

namespace asio = boost::asio;
using namespace cowd;

// Reads arguments as the commands do; there are no devices.
Task<nlohmann::json> perform(const std::string& command, JsonArguments& arguments,
                             std::shared_ptr<ControlServer::Caller> caller) {
  nlohmann::json result = nlohmann::json::object();
  if (command == "attach") {
    const AttachRequest request = attach_request(arguments);
    result["spec"] = parse_spec(request.spec).text();
  } else if (command == "map") {
    result["device"] = arguments.need_string("device");
    result["offset"] = arguments.number("offset").value_or(0);
    arguments.done();
    const nlohmann::json line = {{"progress", {{"done", 1}, {"total", 2}}}};
    co_await caller->tell(line);
  } else {
    result["device"] = arguments.need_string("device");
    arguments.done();
  }
  co_return result;
}

Task<> talk(JsonLines::Socket& socket, std::string_view words) {
  boost::system::error_code error;
  co_await asio::async_write(socket, asio::buffer(words),
                             asio::redirect_error(asio::use_awaitable, error));
  socket.shutdown(JsonLines::Socket::shutdown_send, error);
}

Task<> listen(JsonLines::Socket& socket, std::string& heard) {
  std::array<char, 4096> some;
  for (;;) {
    boost::system::error_code error;
    const size_t count = co_await socket.async_read_some(
        asio::buffer(some), asio::redirect_error(asio::use_awaitable, error));
    if (error) co_return;
    heard.append(some.data(), count);
  }
}

void judge(const std::string& heard) {
  for (size_t at = 0; at < heard.size();) {
    const size_t end = heard.find('\n', at);
    fuzz::require(end != std::string::npos, "an answer without an end: " + heard.substr(at));
    const auto line = nlohmann::json::parse(heard.substr(at, end - at), nullptr, false);
    fuzz::require(line.is_object(), "no object: " + heard.substr(at, end - at));
    const bool last = line.contains("ok") && line["ok"].is_boolean();
    fuzz::require(last || line.contains("event") || line.contains("progress"),
                  "no answer: " + heard.substr(at, end - at));
    at = end + 1;
  }
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  asio::io_context io(1);
  EventRing events;
  ControlServer server(io, 4, events, perform);
  JsonLines::Socket ours(io), theirs(io);
  asio::local::connect_pair(ours, theirs);
  std::string heard;
  bool served = false;
  asio::co_spawn(io, server.serve(std::move(ours)), [&](std::exception_ptr) { served = true; });
  asio::co_spawn(io, talk(theirs, {reinterpret_cast<const char*>(data), size}), asio::detached);
  asio::co_spawn(io, listen(theirs, heard), asio::detached);
  io.run();
  fuzz::require(served, "the server does not end with its client");
  judge(heard);
  return 0;
}
