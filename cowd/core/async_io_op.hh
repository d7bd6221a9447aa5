// SPDX-License-Identifier: GPL-2.0-or-later
// What an engine of async_io.hh is given to do.
#pragma once

#include <cstdint>

#include "cowd/core/async_io.hh"

namespace boost::asio {
class io_context;
}

namespace cowd {

struct IoOp {
  enum class Kind : uint8_t { read, write, write_durably, sync };
  Kind kind = Kind::read;
  int fd = -1;
  uint64_t offset = 0;
  void* buffer = nullptr;
  uint32_t len = 0;
  unsigned retries = 0;          // the engine's own
  bool failed_to_begin = false;  // set by begin(): who waits does not do so yet

  virtual ~IoOp() = default;
  // Resumes who waits, on its own executor, and deletes this. Bytes or a negative errno.
  virtual void complete(int64_t result) = 0;
};

std::shared_ptr<AsyncIo> make_thread_io();
// Null where the host does not permit io_uring; `error` then says why.
std::shared_ptr<AsyncIo> make_uring_io(boost::asio::io_context& io, int* error);

}  // namespace cowd
