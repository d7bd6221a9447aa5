// SPDX-License-Identifier: GPL-2.0-or-later
// The file of a named disk.
#include <cstdint>
#include <string>

#include "cowd/core/disk_options_toml.hh"
#include "cowd/core/error.hh"
#include "cowd/core/toml.hh"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    cowd::check_disk_options(
        cowd::parse_toml(std::string(reinterpret_cast<const char*>(data), size), "disk.toml"),
        "disk.toml");
  } catch (const cowd::Error&) {
  }
  return 0;
}
