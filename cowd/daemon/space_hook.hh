// SPDX-License-Identifier: GPL-2.0-or-later
// The host's own program that adds room (space.hook): what it is called with is in
// docs/space.md.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "cowd/daemon/space.hh"

namespace cowd {

struct SpaceHookCall {
  std::string program;
  std::chrono::milliseconds limit{60000};
  bool waiting = false;  // writes wait already
  SpaceId::Kind kind = SpaceId::Kind::filesystem;
  SpaceFigures figures;
  std::vector<std::string> devices;
};

// Whether root alone decides what runs as root: the file and all directories above it are
// root's, and nobody else may write to them. Throws Error: EPERM, ENOENT, EACCES (not
// executable).
void check_space_hook(const std::string& program);

// Its words, program first, and what its environment has more than other children's.
std::vector<std::string> hook_words(const SpaceHookCall& call);
std::vector<std::string> hook_environment(const SpaceHookCall& call, const std::string& lvm_config);

// Checks it and runs it to its end. Gives how that was, with the last line it said; throws
// Error if it could not be run, failed, or took too long. Blocks.
std::string run_space_hook(const SpaceHookCall& call);

}  // namespace cowd
