// SPDX-License-Identifier: GPL-2.0-or-later
// How a harness says that something is wrong that is no crash by itself.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace cowd::fuzz {

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "\nwrong: %s\n", what.c_str());
  std::abort();
}

inline void require(bool holds, const std::string& what) {
  if (!holds) fail(what);
}

}  // namespace cowd::fuzz
