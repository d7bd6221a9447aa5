// SPDX-License-Identifier: GPL-2.0-or-later
// The kernel's nbd driver through its generic netlink family (linux/nbd-netlink.h). A device
// configured that way needs no process to stay connected.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "cowd/nbd/handshake.hh"

namespace cowd::nbd {

struct Timeouts {
  uint64_t request = 30;  // seconds until a connection that does not answer is given up
  uint64_t dead = 0;      // seconds for which requests wait for another connection
};

class Netlink {
 public:
  // Loads the module where it is missing. Throws Error.
  Netlink();
  ~Netlink();
  Netlink(const Netlink&) = delete;
  Netlink& operator=(const Netlink&) = delete;

  // Makes a device that is free, or a new one, that export's; gives its number. `backend` is
  // what /sys/block/nbdN/backend says from then on, and until then udev knows it by a mark.
  uint32_t connect(const Export& from, const Timeouts& timeouts, const std::string& backend);
  // Another connection in place of one that died.
  void reconnect(uint32_t index, int fd, const std::string& backend);
  // From now on the last close disconnects it.
  void disconnect_on_close(uint32_t index, const std::string& backend);
  void disconnect(uint32_t index);

  // Whether the kernel says within `limit` that the connection of that device has died.
  bool link_died(uint32_t index, std::chrono::milliseconds limit);

 private:
  std::string ask(uint8_t command, uint16_t family, const std::string& attributes,
                  const std::string& purpose);
  bool find_family();
  bool connect_as(uint32_t index, const std::string& attributes);

  int requests_ = -1;
  int events_ = -1;
  uint16_t family_ = 0;
  uint32_t group_ = 0;
  uint32_t sequence_ = 0;
};

}  // namespace cowd::nbd
