// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/host.hh"

#include <fstream>

#include "cowd/core/error.hh"

namespace cowd {

namespace {

std::string first_word(const char* path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

}  // namespace

std::string host_id() {
  const std::string id = first_word("/etc/machine-id");
  if (id.empty())
    throw Error(ENOENT,
                "/etc/machine-id is missing or empty, so this host cannot sign what it writes; "
                "run systemd-machine-id-setup.");
  return id;
}

std::string boot_id() {
  const std::string id = first_word("/proc/sys/kernel/random/boot_id");
  if (id.empty())
    throw Error(ENOENT, "/proc/sys/kernel/random/boot_id cannot be read; mount /proc.");
  return id;
}

std::string random_uuid() {
  const std::string uuid = first_word("/proc/sys/kernel/random/uuid");
  if (uuid.empty())
    throw Error(EIO, "/proc/sys/kernel/random/uuid cannot be read: is /proc mounted?");
  return uuid;
}

}  // namespace cowd
