// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/json_lines.hh"

#include <boost/asio/buffer.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <nlohmann/json.hpp>

#include "cowd/core/errno_name.hh"

namespace cowd {

namespace asio = boost::asio;
using nlohmann::json;

Task<std::optional<json>> JsonLines::read() {
  boost::system::error_code error;
  const size_t len =
      co_await asio::async_read_until(socket_, asio::dynamic_buffer(buffer_, kMaxLine), '\n',
                                      asio::redirect_error(asio::use_awaitable, error));
  if (error == asio::error::not_found)
    throw Error(EMSGSIZE, "A line on the control socket is longer than 1 MiB.");
  if (error == asio::error::eof && buffer_.empty()) co_return std::nullopt;
  if (error == asio::error::eof)
    throw Error(EPROTO, "The control connection ended in the middle of a line.");
  if (error) throw system_error(error.value(), "Reading from the control socket failed");

  json object = json::parse(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(len), nullptr,
                            /*allow_exceptions=*/false);
  buffer_.erase(0, len);
  if (!object.is_object())
    throw Error(EPROTO, "A line on the control socket is not a JSON object.");
  co_return object;
}

Task<> JsonLines::write(const json& object) {
  const std::string line = object.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  if (line.size() > kMaxLine)
    throw Error(EMSGSIZE, "A message of " + std::to_string(line.size()) +
                              " bytes does not fit a line of the control protocol (1 MiB); ask "
                              "for less at once.");
  boost::system::error_code error;
  co_await asio::async_write(socket_, asio::buffer(line),
                             asio::redirect_error(asio::use_awaitable, error));
  if (error) throw system_error(error.value(), "Writing to the control socket failed");
}

}  // namespace cowd
