// SPDX-License-Identifier: GPL-2.0-or-later
#include <utility>

#include <nlohmann/json.hpp>

#include "cowd/core/control_client.hh"
#include "cowd/core/run.hh"
#include "cowd/cowctl/context.hh"
#include "cowd/cowctl/progress.hh"

namespace cowctl {

using cowd::ControlClient;

namespace {

void show_progress(ProgressLine& line, const json& message) {
  const auto progress = message.find("progress");
  if (progress == message.end() || !progress->is_object()) return;
  line.update(progress->value("done", uint64_t{0}), progress->value("total", uint64_t{0}),
              progress->value("what", std::string()));
}

Task<std::optional<ControlClient>> connect(const std::string& socket) {
  co_return co_await ControlClient::connect(socket);
}

json call(Context& context, ControlClient& client, const json& request, const std::string& what) {
  ProgressLine line(context, what);
  return cowd::run_to_end(
      context.io, client.call(request, [&](const json& message) { show_progress(line, message); }));
}

}  // namespace

json ask(Context& context, const json& request, const std::string& what) {
  auto client = cowd::run_to_end(context.io, connect(context.options.socket));
  return call(context, *client, request, what);
}

std::optional<json> ask_if_attached(Context& context, const json& request,
                                    const std::string& what) {
  std::optional<ControlClient> client;
  try {
    client = cowd::run_to_end(context.io, connect(context.options.socket));
  } catch (const Error& e) {
    if (is_spec(context.options.target)) return std::nullopt;
    throw;
  }
  try {
    return call(context, *client, request, what);
  } catch (const Error& e) {
    // EPERM: cowd talks to root only, but who may read the image may look at it.
    const bool elsewhere = e.code() == ENODEV || e.code() == EPERM || e.code() == EPIPE;
    if (elsewhere && is_spec(context.options.target)) return std::nullopt;
    throw;
  }
}

json ask_lines(Context& context, const json& request, std::function<void(const json&)> on_line) {
  auto client = cowd::run_to_end(context.io, connect(context.options.socket));
  return cowd::run_to_end(context.io, client->call(request, on_line));
}

}  // namespace cowctl
