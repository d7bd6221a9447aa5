// SPDX-License-Identifier: GPL-2.0-or-later
// The engine for hosts without io_uring: threads that are made when no idle one is
// there and leave when idle. Their number is bounded only by what the disks have
// under way, so a backing that hangs holds its own threads and no other's.
#include <utility>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>

#include <sys/uio.h>
#include <unistd.h>

#include "cowd/core/async_io_op.hh"
#include "cowd/core/thread.hh"

namespace cowd {

namespace {

constexpr auto kIdle = std::chrono::seconds(10);
constexpr size_t kStack = 64 * 1024;

// `completing` threads touch the io_context of who waits, so the engine must not end
// before them. One that hangs in its backing is not waited for: should it come back
// later, who waited is gone, and it keeps what it has to itself.
struct Crew {
  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable completed;
  std::deque<IoOp*> queue;
  size_t idle = 0;
  size_t completing = 0;
  bool stopping = false;
};

int64_t perform(const IoOp& op) {
  ssize_t n = -1;
  do {
    switch (op.kind) {
      case IoOp::Kind::read:
        n = pread(op.fd, op.buffer, op.len, static_cast<off_t>(op.offset));
        break;
      case IoOp::Kind::write:
        n = pwrite(op.fd, op.buffer, op.len, static_cast<off_t>(op.offset));
        break;
      case IoOp::Kind::write_durably: {
        const iovec whole{op.buffer, op.len};
        n = pwritev2(op.fd, &whole, 1, static_cast<off_t>(op.offset), RWF_DSYNC);
        break;
      }
      case IoOp::Kind::sync: n = fdatasync(op.fd); break;
    }
  } while (n < 0 && errno == EINTR);
  return n < 0 ? -errno : n;
}

void work(const std::shared_ptr<Crew>& crew) {
  std::unique_lock lock(crew->mutex);
  for (;;) {
    ++crew->idle;
    const bool woken =
        crew->wake.wait_for(lock, kIdle, [&] { return crew->stopping || !crew->queue.empty(); });
    --crew->idle;
    if (!woken || crew->queue.empty()) return;
    IoOp* op = crew->queue.front();
    crew->queue.pop_front();
    lock.unlock();
    const int64_t result = perform(*op);
    lock.lock();
    if (crew->stopping) return;
    ++crew->completing;
    lock.unlock();
    op->complete(result);
    lock.lock();
    --crew->completing;
    crew->completed.notify_all();
  }
}

class ThreadIo : public AsyncIo {
 public:
  ~ThreadIo() override {
    std::unique_lock lock(crew_->mutex);
    crew_->stopping = true;
    crew_->wake.notify_all();
    crew_->completed.wait(lock, [this] { return crew_->completing == 0; });
  }

  const char* engine() const override { return "threads"; }

 private:
  void begin(IoOp* op) override {
    bool hire;
    {
      std::lock_guard lock(crew_->mutex);
      crew_->queue.push_back(op);
      hire = crew_->queue.size() > crew_->idle;
      if (!hire) crew_->wake.notify_one();
    }
    if (!hire || start_thread([crew = crew_] { work(crew); }, kStack)) return;
    withdraw(op);
  }

  // No thread could be made: unless one has taken op by now, it fails.
  void withdraw(IoOp* op) {
    {
      std::lock_guard lock(crew_->mutex);
      const auto at = std::find(crew_->queue.begin(), crew_->queue.end(), op);
      if (at == crew_->queue.end()) return;
      crew_->queue.erase(at);
    }
    op->failed_to_begin = true;
    op->complete(-EAGAIN);
  }

  std::shared_ptr<Crew> crew_ = std::make_shared<Crew>();
};

}  // namespace

std::shared_ptr<AsyncIo> make_thread_io() { return std::make_shared<ThreadIo>(); }

}  // namespace cowd
