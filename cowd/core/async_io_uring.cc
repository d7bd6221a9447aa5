// SPDX-License-Identifier: GPL-2.0-or-later
// The io_uring engine: one ring, an eventfd that the reactor watches while anything
// is under way. What the kernel cannot do without blocking it gives to its own
// worker threads; their number is raised far above the usual (a few per CPU), for a
// backing that hangs keeps as many as its disks have requests under way.
#include <liburing.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <chrono>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "cowd/core/async_io_op.hh"

namespace cowd {

namespace asio = boost::asio;

namespace {

constexpr unsigned kEntries = 256;
constexpr unsigned kWorkers = 4096;
constexpr auto kRetry = std::chrono::milliseconds(10);
constexpr unsigned kRetries = 1000;  // of one operation, so that a refusal for good is told

class UringIo : public AsyncIo, public std::enable_shared_from_this<UringIo> {
 public:
  explicit UringIo(asio::io_context& io) : event_(io), retry_(io) {}

  ~UringIo() override {
    boost::system::error_code ignored;
    event_.close(ignored);
    if (ready_) io_uring_queue_exit(&ring_);
  }

  int start() {
    if (const int error = io_uring_queue_init(kEntries, &ring_, 0); error < 0) return -error;
    ready_ = true;
    unsigned workers[2] = {kWorkers, 0};
    io_uring_register_iowq_max_workers(&ring_, workers);
    const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) return errno;
    event_.assign(fd);
    return -io_uring_register_eventfd(&ring_, fd);
  }

  const char* engine() const override { return "io_uring"; }

 private:
  void begin(IoOp* op) override {
    std::lock_guard lock(mutex_);
    backlog_.push_back(op);
    push();
    if (!watching_) watch();
  }

  // Moves what fits from the backlog to the ring. What the kernel does not take now
  // (EAGAIN, EBUSY) stays in the ring and goes with a later call. mutex_ is held.
  void push() {
    while (!backlog_.empty()) {
      io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
      if (!sqe) break;
      prepare(sqe, *backlog_.front());
      io_uring_sqe_set_data(sqe, backlog_.front());
      backlog_.pop_front();
      ++under_way_;
    }
    while (io_uring_submit(&ring_) == -EINTR) {
    }
    if (io_uring_sq_ready(&ring_) > 0) push_later();
  }

  // Whether the kernel did not begin an operation, for a reason that passes. We cancel
  // none: it is the kernel that cancels what waits when it fails to make a worker thread,
  // which it gives up at once if a signal or a limit is in the way (io_uring/io-wq.c,
  // create_worker_cont).
  static bool is_for_later(int result) { return result == -ECANCELED || result == -EAGAIN; }

  // The kernel was short of memory, and perhaps nothing is under way whose end would
  // bring us here again.
  void push_later() {
    if (retrying_) return;
    retrying_ = true;
    retry_.expires_after(kRetry);
    retry_.async_wait([weak = weak_from_this()](boost::system::error_code error) {
      auto self = weak.lock();
      if (!self || error) return;
      std::lock_guard lock(self->mutex_);
      self->retrying_ = false;
      self->backlog_.insert(self->backlog_.begin(), self->later_.begin(), self->later_.end());
      self->later_.clear();
      self->push();
      if (!self->watching_ && self->under_way_ > 0) self->watch();
    });
  }

  static void prepare(io_uring_sqe* sqe, const IoOp& op) {
    switch (op.kind) {
      case IoOp::Kind::read: io_uring_prep_read(sqe, op.fd, op.buffer, op.len, op.offset); break;
      case IoOp::Kind::write: io_uring_prep_write(sqe, op.fd, op.buffer, op.len, op.offset); break;
      case IoOp::Kind::write_durably:
        io_uring_prep_write(sqe, op.fd, op.buffer, op.len, op.offset);
        sqe->rw_flags = RWF_DSYNC;
        break;
      case IoOp::Kind::sync: io_uring_prep_fsync(sqe, op.fd, IORING_FSYNC_DATASYNC); break;
    }
  }

  // mutex_ is held. The weak pointer: a watch must not keep the engine. A read, for a wait would
  // have the descriptor added to epoll anew each time.
  void watch() {
    watching_ = true;
    event_.async_read_some(asio::buffer(&count_, sizeof count_),
                           [weak = weak_from_this()](boost::system::error_code error, size_t) {
                             if (auto self = weak.lock(); self && !error) self->drain();
                           });
  }

  void drain() {
    std::vector<std::pair<IoOp*, int>> done;
    {
      std::lock_guard lock(mutex_);
      io_uring_cqe* cqe;
      while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
        auto* op = static_cast<IoOp*>(io_uring_cqe_get_data(cqe));
        --under_way_;
        if (is_for_later(cqe->res) && op->retries++ < kRetries)
          later_.push_back(op);
        else
          done.emplace_back(op, cqe->res);
        io_uring_cqe_seen(&ring_, cqe);
      }
      push();
      if (!later_.empty()) push_later();
      watching_ = false;
      if (under_way_ > 0) watch();
    }
    for (auto [op, result] : done) op->complete(result);
  }

  std::mutex mutex_;
  io_uring ring_{};
  bool ready_ = false;
  asio::posix::stream_descriptor event_;
  bool watching_ = false;
  uint64_t count_ = 0;  // what is read from it, of no interest
  asio::steady_timer retry_;
  bool retrying_ = false;
  size_t under_way_ = 0;
  std::deque<IoOp*> backlog_;
  std::vector<IoOp*> later_;  // to go to the backlog after kRetry
};

}  // namespace

std::shared_ptr<AsyncIo> make_uring_io(asio::io_context& io, int* error) {
  auto ring = std::make_shared<UringIo>(io);
  *error = ring->start();
  return *error ? nullptr : ring;
}

}  // namespace cowd
