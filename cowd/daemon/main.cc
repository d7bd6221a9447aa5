// SPDX-License-Identifier: GPL-2.0-or-later
// cowd: the command line, and the order in which the process is prepared.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>
#include <utility>

#include "build/config.h"
#include "cowd/core/error.hh"
#include "cowd/daemon/config.hh"
#include "cowd/daemon/daemon.hh"
#include "cowd/daemon/error_id.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/process.hh"
#include "cowd/daemon/run_dir.hh"
#include "cowd/daemon/space_hook.hh"
#include "cowd/daemon/text.hh"

namespace {

constexpr int kFailed = 1;
constexpr int kWrongUse = 2;

struct CommandLine {
  std::string config;  // empty: the installed one, if it is there
  bool check_config = false;
  bool foreground = false;
  std::string log_level;
  std::string socket;
  std::string run_dir;
  std::vector<std::string> plugin_dirs;
};

std::string absolute(const std::string& path) {
  return path.empty() ? path : std::filesystem::absolute(path).lexically_normal().string();
}

// The file, then the command line over it.
cowd::Config make_config(const CommandLine& line) {
  std::string installed = COWD_SYSCONF_DIR "/cowd.toml";
  cowd::Config config = cowd::default_config();
  if (!line.config.empty())
    config = cowd::load_config(absolute(line.config));
  else if (std::filesystem::exists(installed))
    config = cowd::load_config(installed);
  if (!line.log_level.empty()) config.log.level = *cowd::level_from_name(line.log_level);
  if (!line.socket.empty()) config.paths.socket = absolute(line.socket);
  if (!line.run_dir.empty()) config.paths.run_dir = absolute(line.run_dir);
  for (auto it = line.plugin_dirs.rbegin(); it != line.plugin_dirs.rend(); ++it)
    config.paths.plugin_dirs.insert(config.paths.plugin_dirs.begin(), absolute(*it));
  if (line.foreground) config.log.targets = {cowd::LogTarget::console};
  return config;
}

// SIGHUP: the log's file is opened again and its level read again. May block.
void reload(const CommandLine& line) {
  try {
    cowd::open_log(make_config(line).log);
    cowd::log(cowd::Level::info, "The log was opened again, as SIGHUP asked for.");
  } catch (const cowd::Error& error) {
    cowd::log(cowd::Level::error, error.what(), {{}, cowd::new_error_id()});
  }
}

bool on_console(const cowd::LogSettings& log) {
  return std::find(log.targets.begin(), log.targets.end(), cowd::LogTarget::console) !=
         log.targets.end();
}

int serve(const CommandLine& line) {
  cowd::Config config = make_config(line);
  // Before the log: its threads inherit what this sets.
  auto complaints = cowd::prepare_process(config.process);
  cowd::open_log(config.log);
  for (const auto& complaint : complaints) cowd::log(cowd::Level::warning, complaint);
  int code = 0;
  try {
    cowd::RunDir run_dir(config.paths.run_dir);
    cowd::run_daemon(config, run_dir, [line] { reload(line); });
  } catch (const std::exception& error) {
    code = kFailed;
    cowd::log(cowd::Level::error, error.what(), {{}, cowd::new_error_id()});
    // Nobody may be looking where the log goes.
    if (!on_console(config.log)) std::cerr << "cowd: " << error.what() << std::endl;
  }
  cowd::close_log();
  return code;
}

void add_options(CLI::App& app, CommandLine& line) {
  app.set_version_flag("--version", std::string("cowd ") + DMU_VERSION);
  app.add_option("--config", line.config,
                 "configuration to read instead of " COWD_SYSCONF_DIR "/cowd.toml")
      ->type_name("FILE");
  app.add_flag("--check-config", line.check_config,
               "say whether the configuration is right, and end");
  app.add_flag("--foreground", line.foreground, "log to standard error only");
  app.add_option("--log-level", line.log_level, "how much to log")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}));
  app.add_option("--socket", line.socket, "control socket")->type_name("PATH");
  app.add_option("--run-dir", line.run_dir, "directory for the lock and the list of devices")
      ->type_name("DIR");
  app.add_option("--plugin-dir", line.plugin_dirs, "where format plugins are looked for first")
      ->type_name("DIR");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"cowd serves copy-on-write disks through dm-userspace; see cowd(8)."};
  CommandLine line;
  add_options(app, line);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    int code = app.exit(error);
    return code ? kWrongUse : 0;
  }
  try {
    if (line.check_config) {
      const cowd::Config config = make_config(line);
      if (!config.space.hook.empty()) cowd::check_space_hook(config.space.hook);
      std::cout << "The configuration is right.\n";
      return 0;
    }
    return serve(line);
  } catch (const std::exception& error) {
    std::cerr << "cowd: " << error.what() << std::endl;
    return kFailed;
  }
}
