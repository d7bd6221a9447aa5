// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/error_id.hh"

#include <cstdio>
#include <random>

namespace cowd {

std::string new_error_id() {
  thread_local std::mt19937 random{std::random_device{}()};
  char id[16];
  std::snprintf(id, sizeof id, "e-%08x", static_cast<unsigned>(random()));
  return id;
}

}  // namespace cowd
