// SPDX-License-Identifier: GPL-2.0-or-later
// cowctl attach, detach, pause, resume
#include <utility>

#include <iostream>

#include <nlohmann/json.hpp>

#include "cowd/cowctl/commands.hh"
#include "cowd/cowctl/output.hh"

namespace cowctl {

namespace {

int command_a_device(Context& context, const char* command, const char* doing) {
  ask(context, {{"cmd", command}, {"device", context.options.target}},
      std::string(doing) + " " + context.options.target);
  return 0;
}

json features(const Options& options) {
  json object = json::object();
  if (!options.no_daemon.empty()) object["no_daemon"] = options.no_daemon;
  if (options.no_daemon_seconds) object["no_daemon_seconds"] = *options.no_daemon_seconds;
  if (options.max_extents) object["max_extents"] = *options.max_extents;
  return object;
}

}  // namespace

int run_attach(Context& context) {
  const Options& options = context.options;
  const std::string spec = cowd::parse_spec(options.target).text();
  json request = {{"cmd", "attach"}, {"spec", spec}};
  if (!options.name.empty()) request["name"] = options.name;
  if (!options.durability.empty()) request["durability"] = options.durability;
  if (options.read_only) request["read_only"] = true;
  if (json wanted = features(options); !wanted.empty()) request["features"] = std::move(wanted);
  const json device = ask(context, request, "attaching " + spec);
  if (options.json)
    print_json(std::cout, device);
  else
    context.say(device.value("path", ""));
  return 0;
}

int run_detach(Context& context) { return command_a_device(context, "detach", "detaching"); }

int run_pause(Context& context) { return command_a_device(context, "pause", "pausing"); }

int run_resume(Context& context) { return command_a_device(context, "resume", "resuming"); }

}  // namespace cowctl
