// SPDX-License-Identifier: GPL-2.0-or-later
// cowctl list, stats, events, version, log-level
#include <utility>

#include <iostream>

#include <nlohmann/json.hpp>

#include "build/config.h"
#include "cowd/cowctl/commands.hh"
#include "cowd/cowctl/output.hh"

namespace cowctl {

namespace {

void print_event(const Context& context, const json& line) {
  const auto event = line.find("event");
  if (event == line.end()) return;
  if (context.options.json) {
    std::cout << event->dump(-1, ' ', false, json::error_handler_t::replace) << std::endl;
    return;
  }
  std::cout << cell(*event, "number") << "  " << cell(*event, "time") << "  "
            << cell(*event, "type") << "  " << cell(*event, "device") << "  "
            << cell(*event, "message");
  if (event->contains("id")) std::cout << " [" << cell(*event, "id") << "]";
  std::cout << std::endl;
}

// Below the table: what the operator has to do something about.
void print_wait(const json& device) {
  const json& wait = device["waiting_for_space"];
  std::cout << cell(device, "name") << ": writes wait for room on " << cell(wait, "destination")
            << " since " << cell(wait, "since") << '\n';
}

}  // namespace

int run_list(Context& context) {
  const json answer = ask(context, {{"cmd", "list"}}, "asking cowd");
  if (context.options.json) {
    print_json(std::cout, answer);
    return 0;
  }
  using enum Table::Align;
  Table table({{"Name"},
               {"Size", right},
               {"Format"},
               {"Durability"},
               {"State"},
               {"Open", right},
               {"Specification"}});
  for (const json& device : answer.value("devices", json::array()))
    table.add({cell(device, "name"), size_cell(device), cell(device, "format"),
               cell(device, "durability"), cell(device, "state"), cell(device, "open_count"),
               cell(device, "spec")});
  if (context.options.quiet) return 0;
  table.print(std::cout);
  for (const json& device : answer.value("devices", json::array()))
    if (device.contains("waiting_for_space")) print_wait(device);
  return 0;
}

int run_stats(Context& context) {
  json request = {{"cmd", "stats"}};
  if (!context.options.target.empty()) request["device"] = context.options.target;
  const json answer = ask(context, request, "asking cowd");
  if (context.options.json) {
    print_json(std::cout, answer);
    return 0;
  }
  for (const json& device : answer.value("devices", json::array())) {
    json rest = device;
    rest.erase("name");
    std::cout << cell(device, "name") << ":\n";
    print_object(std::cout, rest, 4);
  }
  if (answer.contains("process")) print_object(std::cout, {{"process", answer["process"]}});
  return 0;
}

int run_events(Context& context) {
  json request = {{"cmd", "events"}};
  if (context.options.follow) request["follow"] = true;
  if (context.options.since) request["since"] = *context.options.since;
  ask_lines(context, request, [&](const json& line) {
    print_event(context, line);
    // Nobody reads any more: following on would never end.
    if (!std::cout) throw Error(EPIPE, "The events cannot be written to the standard output.");
  });
  return 0;
}

// Without a cowd this still tells cowctl's own.
int run_version(Context& context) {
  json versions = {{"cowctl", DMU_VERSION}, {"cowd", nullptr}};
  std::string why;
  try {
    versions["cowd"] = ask(context, {{"cmd", "version"}}, "asking cowd");
  } catch (const Error& e) {
    why = e.what();
  }
  if (context.options.json) {
    print_json(std::cout, versions);
  } else {
    std::cout << "cowctl: " << DMU_VERSION << '\n';
    if (why.empty())
      print_object(std::cout, {{"cowd", versions["cowd"]}});
    else
      std::cout << "cowd: " << why << '\n';
  }
  return 0;
}

int run_log_level(Context& context) {
  ask(context, {{"cmd", "log-level"}, {"level", context.options.level}}, "asking cowd");
  return 0;
}

}  // namespace cowctl
