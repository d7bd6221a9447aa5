// SPDX-License-Identifier: GPL-2.0-or-later
// /etc/cowd/cowd.toml. docs/configuration.md says what each key means; a test
// compares its keys with config_keys().
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "cowd/daemon/log.hh"
#include "cowd/daemon/session.hh"
#include "formats/plugin.hh"

namespace cowd {

struct Config {
  struct Paths {
    std::string run_dir;
    std::string socket;  // empty: control.sock in run_dir
    std::string disks_dir;
    std::vector<std::string> plugin_dirs;  // before the installed one
    std::vector<std::string>
        reference_roots;  // where images may name files, beside their own folder
  } paths;

  LogSettings log;

  struct Control {
    unsigned max_clients = 64;
  } control;

  // Defaults for devices whose attach request does not say otherwise.
  struct Devices {
    Durability durability = Durability::flush;
    bool queue_if_no_daemon = true;
    unsigned no_daemon_seconds = 60;                // if not queue_if_no_daemon
    uint64_t max_extents = 0;                       // 0: the module's default
    uint64_t metadata_cache = kMetadataCache;       // bytes
    bool keep_on_reboot = false;                    // of transient disks
    std::vector<std::string> store_directories;     // where transient stores may be made
    bool wait_for_backing = true;                   // when a server is lost
    std::chrono::seconds backing_loss_timeout{60};  // if not wait_for_backing
    SessionSettings session;
  } devices;

  // What is done before stores find no room, and when they do.
  struct Space {
    std::chrono::milliseconds interval{30000};  // between two looks; 0: only when one is full
    unsigned low = 80;                          // percent; space_state.hh
    std::string hook;                           // a program; empty: none
    std::chrono::milliseconds hook_timeout{60000};
    std::chrono::milliseconds hook_interval{60000};  // between two runs for the same object
  } space;

  struct Process {
    unsigned threads = std::clamp(std::thread::hardware_concurrency(), 1U, 4U);
    bool lock_memory = true;
    bool io_flusher = true;
    bool oom_protect = true;
    bool private_mounts = true;
  } process;

  std::string socket_path() const {
    return paths.socket.empty() ? paths.run_dir + "/control.sock" : paths.socket;
  }
};

// The defaults of this build.
Config default_config();

// The file at `path` over the defaults. Throws Error(EINVAL) naming file, line and
// key; ENOENT and the like when it cannot be read.
Config load_config(const std::string& path);

// The same from text; `name` stands for the file in sentences.
Config parse_config(std::string_view text, const std::string& name);

// Every key that the parser knows, as "table.key", in the order of the document.
std::vector<std::string> config_keys();

}  // namespace cowd
