// SPDX-License-Identifier: GPL-2.0-or-later
// cowd as a whole: what main() has prepared, put together and run until SIGTERM.
#pragma once

#include <functional>

#include "cowd/daemon/config.hh"
#include "cowd/daemon/run_dir.hh"

namespace cowd {

// Serves until SIGTERM or SIGINT, then commits everything and leaves the devices up.
// `reload`: what SIGHUP does, off the reactor; it must not throw.
void run_daemon(const Config& config, RunDir& run_dir, std::function<void()> reload);

}  // namespace cowd
