// SPDX-License-Identifier: GPL-2.0-or-later
#include <csignal>
#include <cstdio>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/errno_name.hh"
#include "cowd/cowctl/commands.hh"

namespace {

using namespace cowctl;

int dispatch(Context& context) {
  static const std::map<std::string, int (*)(Context&)> commands = {
      {"create", run_create},       {"info", run_info},       {"map", run_map},
      {"check", run_check},         {"attach", run_attach},   {"detach", run_detach},
      {"list", run_list},           {"stats", run_stats},     {"events", run_events},
      {"pause", run_pause},         {"resume", run_resume},   {"version", run_version},
      {"log-level", run_log_level}, {"vbd", run_vbd},         {"stores", run_stores},
      {"delete", run_delete},       {"doctor", run_doctor},   {"snapshot", run_snapshot},
      {"resize", run_resize},       {"compare", run_compare}, {"commit", run_commit},
      {"rebase", run_rebase}};
  return commands.at(context.options.command)(context);
}

// A full disk or a closed pipe behind stdout is a failure too.
int finish(int status) {
  std::cout.flush();
  if (!std::cout || std::fflush(stdout) != 0)
    throw Error(EIO, "The result cannot be written to the standard output.");
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  try {
    Parsed parsed = parse_command_line(argc, argv);
    if (parsed.answered) return finish(0);
    Context context(std::move(parsed.options));
    return finish(dispatch(context));
  } catch (const Error& e) {
    std::cerr << "cowctl: " << e.what() << '\n';
  } catch (const std::exception& e) {
    std::cerr << "cowctl: failed in a way it should not: " << e.what() << ".\n";
  }
  return 1;
}
