// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/service.hh"

#include <systemd/sd-daemon.h>

namespace cowd {

void notify_ready(const std::string& status) {
  sd_notify(0, ("READY=1\nSTATUS=" + status).c_str());
}

void notify_stopping() { sd_notify(0, "STOPPING=1\nSTATUS=making metadata durable"); }

Watchdog::Watchdog(boost::asio::io_context& io) : timer_(io) {
  uint64_t microseconds = 0;
  if (sd_watchdog_enabled(0, &microseconds) > 0)
    interval_ = std::chrono::microseconds(microseconds) / 2;
}

void Watchdog::start() {
  if (interval_.count()) ping();
}

void Watchdog::stop() { timer_.cancel(); }

void Watchdog::ping() {
  sd_notify(0, "WATCHDOG=1");
  timer_.expires_after(interval_);
  timer_.async_wait([this](boost::system::error_code cancelled) {
    if (!cancelled) ping();
  });
}

}  // namespace cowd
