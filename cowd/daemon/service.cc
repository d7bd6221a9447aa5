// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/service.hh"

#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>

namespace cowd {

int passed_files() { return std::max(sd_listen_fds(0), 0); }

int take_listening_socket() {
  int socket = -1;
  int count = std::max(sd_listen_fds(1), 0);
  for (int fd = SD_LISTEN_FDS_START; fd < SD_LISTEN_FDS_START + count; ++fd) {
    if (socket < 0 && sd_is_socket_unix(fd, SOCK_STREAM, 1, nullptr, 0) > 0)
      socket = fd;
    else
      close(fd);
  }
  return socket;
}

bool listens_at(int socket, const std::string& path) {
  return sd_is_socket_unix(socket, SOCK_STREAM, 1, path.c_str(), 0) > 0;
}

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
