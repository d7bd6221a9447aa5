// SPDX-License-Identifier: GPL-2.0-or-later
#include <utility>

#include "cowd/cowctl/context.hh"

#include <iostream>

#include "cowd/core/async_io.hh"

namespace cowctl {

void Context::say(const std::string& line) const {
  if (!options.quiet) std::cout << line << '\n';
}

void Context::warn(const std::string& sentence) const {
  if (!options.quiet) std::cerr << "cowctl: " << sentence << '\n';
}

std::shared_ptr<cowd::AsyncIo> Context::async_io() {
  if (!async_io_) async_io_ = cowd::make_async_io(io);
  return async_io_;
}

}  // namespace cowctl
