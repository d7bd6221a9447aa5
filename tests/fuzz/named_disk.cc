// SPDX-License-Identifier: GPL-2.0-or-later
// The file of a named disk.
#include <sstream>
#include <toml.hpp>

#include "cowd/core/disk_options_toml.hh"
#include "cowd/core/error.hh"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::istringstream stream(std::string(reinterpret_cast<const char*>(data), size));
  toml::value table;
  try {
    table = toml::parse(stream, "disk.toml");
  } catch (const std::exception&) {  // as in cowd/core/named_spec.cc
    return 0;
  }
  try {
    cowd::check_disk_options(table, "disk.toml");
  } catch (const cowd::Error&) {
  }
  return 0;
}
