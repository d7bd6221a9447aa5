// SPDX-License-Identifier: GPL-2.0-or-later
// A disk specification, which a guest's configuration has: its canonical spelling means the same.
#include "cowd/core/spec.hh"

#include "cowd/core/error.hh"
#include "tests/fuzz/fail.hh"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  cowd::DiskSpec spec;
  try {
    spec = cowd::parse_spec(text);
  } catch (const cowd::Error&) {
    return 0;
  }
  const cowd::DiskSpec again = cowd::parse_spec(spec.text());
  cowd::fuzz::require(again == spec, spec.text() + " means something else than what it is of");
  cowd::fuzz::require(again.text() == spec.text(), spec.text() + " is not canonical");
  return 0;
}
