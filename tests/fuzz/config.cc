// SPDX-License-Identifier: GPL-2.0-or-later
// cowd.toml: read, or refused with a sentence that names it.
#include "cowd/daemon/config.hh"

#include "cowd/core/error.hh"
#include "tests/fuzz/fail.hh"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const cowd::Config config = cowd::parse_config(text, "cowd.toml");
    cowd::fuzz::require(config.process.threads > 0, "cowd would have no thread");
    cowd::fuzz::require(config.control.max_clients > 0, "cowd would have no client");
  } catch (const cowd::Error& error) {
    const std::string sentence = error.what();
    cowd::fuzz::require(sentence.find("cowd.toml") != std::string::npos,
                        "a sentence that does not name the file: " + sentence);
  }
  return 0;
}
