// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/space_hook.hh"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <sstream>

#include "cowd/core/child.hh"
#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/core/units.hh"
#include "cowd/daemon/lvm.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace {

namespace fs = std::filesystem;

[[noreturn]] void refuse(int code, const std::string& program, const std::string& why) {
  throw Error(code, text("The program ", program, " (space.hook) is not run: ", why));
}

void check_owner(const std::string& program, const std::string& path) {
  struct stat st;
  if (lstat(path.c_str(), &st) < 0)
    refuse(errno, program, text(path, " cannot be looked up: ", errno_text(errno), "."));
  if (st.st_uid != 0)
    refuse(EPERM, program, text(path, " does not belong to root. chown it to root."));
  // In a directory like /tmp nobody can put another file in the place of root's.
  const bool sticky = S_ISDIR(st.st_mode) && (st.st_mode & S_ISVTX);
  if ((st.st_mode & (S_IWGRP | S_IWOTH)) && !sticky)
    refuse(EPERM, program,
           text("others than root may write to ", path, ". Take that from them (chmod go-w)."));
}

std::string last_line(const std::string& said) {
  std::istringstream in(said);
  std::string last;
  for (std::string line; std::getline(in, line);)
    if (line.find_first_not_of(" \t\r") != std::string::npos) last = line;
  return last_words(last);  // as much of it as fits a sentence
}

std::string decimal(double value) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.2f", value);
  return digits;
}

}  // namespace

void check_space_hook(const std::string& program) {
  if (program.empty() || program[0] != '/') refuse(EINVAL, program, "its path is not absolute.");
  std::error_code error;
  const fs::path real = fs::canonical(program, error);
  if (error)
    refuse(error.value(), program,
           text("it cannot be found (", errno_text(error.value()), "). Correct space.hook."));
  if (!fs::is_regular_file(real, error)) refuse(EACCES, program, "it is no regular file.");
  if (access(real.c_str(), X_OK) < 0)
    refuse(EACCES, program, "it is not executable. chmod u+x it.");
  // Both the way that is written and the one it leads to.
  for (const fs::path& each : {fs::path(program).lexically_normal(), real})
    for (fs::path at = each;; at = at.parent_path()) {
      if (!fs::is_symlink(at, error)) check_owner(program, at.string());
      if (!at.has_relative_path()) break;
    }
}

std::vector<std::string> hook_words(const SpaceHookCall& call) {
  std::vector<std::string> words = {
      call.program,
      call.waiting ? "waiting" : "low",
      call.kind == SpaceId::Kind::thin_pool ? "thin-pool" : "filesystem",
      call.figures.name,
      std::to_string(call.figures.size),
      std::to_string(call.figures.used)};
  words.insert(words.end(), call.devices.begin(), call.devices.end());
  return words;
}

std::vector<std::string> hook_environment(const SpaceHookCall& call,
                                          const std::string& lvm_config) {
  std::vector<std::string> environment = {"COWD_PERCENT=" + decimal(call.figures.percent),
                                          "COWD_LVM_CONFIG=" + lvm_config};
  if (call.figures.metadata_percent)
    environment.push_back("COWD_METADATA_PERCENT=" + decimal(*call.figures.metadata_percent));
  return environment;
}

std::string run_space_hook(const SpaceHookCall& call) {
  check_space_hook(call.program);
  std::string lvm_config;
  try {
    lvm_config = lvm::config();
  } catch (const Error&) {
    // No lvm2 here: then nobody needs it.
  }
  const auto began = std::chrono::steady_clock::now();
  ChildOptions options;
  options.limit = call.limit;
  options.environment = hook_environment(call, lvm_config);
  const ChildResult result = run_child(hook_words(call), options);
  const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::steady_clock::now() - began);
  std::string said = last_line(result.ok() ? result.out : result.err);
  if (said.empty()) said = last_line(result.ok() ? result.err : result.out);
  if (!said.empty()) said = text(" and said: ", said);
  if (result.signal)
    throw Error(EIO, text(call.program, " was ended by signal ", result.signal, said));
  if (!result.ok())
    throw Error(EIO, text(call.program, " ended with status ", result.exit_code, said));
  return text(call.program, " ended with status 0 after ", format_duration(took), said);
}

}  // namespace cowd
