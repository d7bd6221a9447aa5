// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/xen_thread.hh"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>

#include "cowd/core/error.hh"
#include "cowd/core/thread.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace {

constexpr size_t kStack = 512 * 1024;

void ring(int fd) {
  const uint64_t one = 1;
  while (write(fd, &one, sizeof one) < 0 && errno == EINTR) {
  }
}

void silence(int fd) {
  uint64_t count;
  while (read(fd, &count, sizeof count) < 0 && errno == EINTR) {
  }
}

}  // namespace

XenThread::State::~State() {
  if (wake >= 0) close(wake);
}

XenThread::XenThread(std::unique_ptr<XenHost> host, Changed changed)
    : state_(std::make_shared<State>()) {
  state_->host = std::move(host);
  state_->changed = std::move(changed);
  state_->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (state_->wake < 0) throw Error(errno, "There is no file descriptor left to talk to Xen with.");
  std::function<void()> body = [state = state_] { run(state); };
  if (!start_thread(std::move(body), kStack))
    throw Error(EAGAIN, "No thread could be started to talk to Xen.");
}

XenThread::~XenThread() {
  std::deque<std::function<void(XenHost&)>> dropped;  // here, while its executors still exist
  {
    std::lock_guard lock(state_->mutex);
    state_->stopping = true;
    state_->changed = nullptr;
    dropped.swap(state_->work);
  }
  ring(state_->wake);
}

void XenThread::queue(std::function<void(XenHost&)> work) {
  {
    std::lock_guard lock(state_->mutex);
    state_->work.push_back(std::move(work));
  }
  ring(state_->wake);
}

// In rounds: what has changed is told first, then what had been asked by then is done. So neither a
// flood of events nor one of questions holds up the other.
void XenThread::run(std::shared_ptr<State> state) {
  int events = state->host->fd();
  for (;;) {
    pollfd fds[] = {{state->wake, POLLIN, 0}, {events, POLLIN, 0}};
    poll(fds, 2, -1);
    silence(state->wake);
    if (events >= 0 && fds[1].revents && !tell_changes(*state)) events = -1;
    size_t round;
    {
      std::lock_guard lock(state->mutex);
      round = state->work.size();
    }
    for (;; --round) {
      std::function<void(XenHost&)> work;
      {
        std::lock_guard lock(state->mutex);
        if (state->stopping) return;
        if (!round || state->work.empty()) break;
        work = std::move(state->work.front());
        state->work.pop_front();
      }
      work(*state->host);
    }
  }
}

// False: there will be no more.
bool XenThread::tell_changes(State& state) {
  std::vector<std::string> paths;
  bool fine = true;
  try {
    paths = state.host->changes();
  } catch (const Error& error) {
    log(Level::error, text(error.what(), " cowd hears of changes no more until it is restarted."));
    fine = false;
  }
  std::lock_guard lock(state.mutex);
  if (!paths.empty() && state.changed) state.changed(std::move(paths));
  return fine;
}

}  // namespace cowd
