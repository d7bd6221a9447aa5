// SPDX-License-Identifier: GPL-2.0-or-later
// The command line, read.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace cowctl {

struct Options {
  std::string command;

  bool json = false;
  bool quiet = false;
  bool progress = false;
  std::string socket;
  std::vector<std::string> plugin_dirs;

  std::string target;  // SPEC, or DEVICE: a name, a path below /dev/mapper or a SPEC
  std::string size;
  std::vector<std::string> create_options;  // NAME=VALUE
  bool force = false;
  bool repair = false;
  bool force_share = false;
  bool snapshot_list = false;
  std::optional<std::string> snapshot_create;  // names
  std::optional<std::string> snapshot_apply;
  std::optional<std::string> snapshot_delete;
  bool shrink = false;
  std::string other;  // the second SPEC of compare
  bool strict = false;
  bool keep = false;
  bool unsafe = false;
  std::string backing_file;
  std::string backing_format;
  std::string name;
  std::string durability;
  bool read_only = false;
  std::string no_daemon;
  std::optional<uint64_t> no_daemon_seconds;
  std::optional<uint64_t> max_extents;
  std::string start_offset;
  std::string max_length;
  bool follow = false;
  std::optional<uint64_t> since;
  std::string level;
  std::string action = "list";  // of vbd
  std::string path;             // backend/vbd/DOMID/DEVID
  std::optional<uint64_t> timeout_seconds;
  bool public_sentence = false;
};

struct Parsed {
  Options options;
  bool answered = false;  // --help or --version: printed already, nothing more to do
};

// Throws cowd::Error(EINVAL) that names what was wrong.
Parsed parse_command_line(int argc, const char* const* argv);

}  // namespace cowctl
