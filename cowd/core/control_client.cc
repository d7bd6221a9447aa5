// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/control_client.hh"

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>

#include "cowd/core/errno_name.hh"
#include "cowd/core/json.hh"

namespace cowd {

namespace asio = boost::asio;
using nlohmann::json;

namespace {

Error no_connection(int code, const std::string& path) {
  if (code == ENOENT || code == ECONNREFUSED)
    return Error(code, "No cowd listens on " + path +
                           "; start it (systemctl start cowd), or name its socket with --socket.");
  if (code == EACCES || code == EPERM)
    return Error(code, "The control socket " + path + " is root's; run this as root.");
  return system_error(code, "Connecting to " + path + " failed");
}

}  // namespace

Task<ControlClient> ControlClient::connect(std::string socket_path) {
  if (socket_path.size() >= sizeof(sockaddr_un::sun_path))
    throw Error(ENAMETOOLONG, "The socket path " + socket_path + " is longer than 107 bytes.");
  JsonLines::Socket socket(co_await asio::this_coro::executor);
  boost::system::error_code error;
  co_await socket.async_connect(asio::local::stream_protocol::endpoint(socket_path),
                                asio::redirect_error(asio::use_awaitable, error));
  if (error) throw no_connection(error.value(), socket_path);
  co_return ControlClient(JsonLines(std::move(socket)));
}

Task<json> ControlClient::call(const json& request, const OnLine& on_line) {
  co_await lines_.write(request);
  for (;;) {
    const std::optional<json> line = co_await lines_.read();
    if (!line)
      throw Error(EPIPE,
                  "cowd closed the connection before it had answered; see its log "
                  "(journalctl -u cowd).");
    const auto ok = line->find("ok");
    if (ok == line->end()) {
      if (on_line) on_line(*line);
      continue;
    }
    if (ok->is_boolean() && ok->get<bool>()) co_return line->value("result", json::object());
    throw error_from_json(line->value("error", json::object()));
  }
}

}  // namespace cowd
