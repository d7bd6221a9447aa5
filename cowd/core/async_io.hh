// SPDX-License-Identifier: GPL-2.0-or-later
// Asynchronous reads, writes and syncs of file descriptors, for coroutines on any
// strand. Two engines: io_uring, and threads where io_uring is not permitted.
//
// Neither lets one hung backing stall another: the engine bounds nothing by itself,
// each BlockDisk bounds what it has under way.
#pragma once

#include <cstdint>
#include <memory>

#include "formats/plugin.hh"

namespace boost::asio {
class io_context;
}

namespace cowd {

enum class IoEngine { automatic, uring, threads };

struct IoOp;  // async_io_op.hh, for the engines

// Thread safe. Must outlive every coroutine that waits in it, and the threads that
// run its io_context must outlive it too: the kernel cancels what a thread that
// exits has submitted to a ring.
class AsyncIo {
 public:
  virtual ~AsyncIo() = default;

  // Each gives the bytes moved, or a negative errno. `buffer` must stay valid, and
  // be aligned as O_DIRECT wants it, until then.
  Task<int64_t> read(int fd, uint64_t offset, void* buffer, uint32_t len);
  Task<int64_t> write(int fd, uint64_t offset, const void* buffer, uint32_t len);
  // Durable when it ends, as with O_DSYNC.
  Task<int64_t> write_durably(int fd, uint64_t offset, const void* buffer, uint32_t len);
  Task<int64_t> sync(int fd);  // data and what is needed to find it, as fdatasync

  virtual const char* engine() const = 0;  // "io_uring" or "threads", for the log

 protected:
  // Begins op; its complete() is called once, from any thread, not from begin().
  virtual void begin(IoOp* op) = 0;
  friend struct IoOp;
};

// One a process is enough. Throws Error only if `engine` names one that the host refuses.
std::shared_ptr<AsyncIo> make_async_io(boost::asio::io_context& io,
                                       IoEngine engine = IoEngine::automatic);

}  // namespace cowd
