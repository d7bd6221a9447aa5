// SPDX-License-Identifier: GPL-2.0-or-later
// cowd-nbd: connects a kernel nbd device to an export, and connects it again for as long as
// the kernel has it.
//
//   cowd-nbd --backend TEXT --hold FILE [--request-timeout S] [--dead-timeout S]
//   [--tls required [--tls-ca FILE] [--tls-certificate FILE --tls-key FILE] [--tls-name NAME]]
//   nbd://HOST[:PORT]/EXPORT
//
// States: 1. connect, hand over to the kernel, open the device, say that its last close disconnects
//            it; then go on in the background: whoever waits for us finds the device connected.
//         2. keep it open until FILE is removed (its user has it open by then) or for a minute.
//         3. wait until the connection dies. Is the device disconnected: end. Else connect
//            anew; requests wait in the kernel meanwhile, for as long as --dead-timeout says.
// What fails in state 1 is written to FILE, as ERRNO: SENTENCE.
// Started again, by whoever saw it killed, it finds the device and goes on with it: in state 3,
// where it may have to replace the connection; before that in state 2, if FILE is still there.
// Killed in the middle of state 1 it had not said that the last close disconnects: that is said
// again. Without FILE, device and somebody who has it open there is nothing to do.
#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/core/spec.hh"
#include "cowd/nbd/handshake.hh"
#include "cowd/nbd/netlink.hh"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

namespace cowd::nbd {

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kHandshake = 10s;
constexpr auto kLongestHold = 60s;
constexpr auto kLongestDelay = 5000ms;
constexpr auto kLook = 5000ms;

struct Options {
  std::string backend;
  std::string hold;
  Timeouts timeouts;
  TlsSettings tls;
  Component component;
};

int usage() {
  std::cerr << "usage: cowd-nbd --backend TEXT --hold FILE [--request-timeout S] "
               "[--dead-timeout S] [--tls required [--tls-ca FILE] [--tls-certificate FILE "
               "--tls-key FILE] [--tls-name NAME]] nbd://HOST[:PORT]/EXPORT\n";
  return 2;
}

uint64_t seconds(const std::string& text) {
  char* end = nullptr;
  const uint64_t value = std::strtoull(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || value > 10ULL * 365 * 86400)
    throw Error(EINVAL, "'" + text + "' is no number of seconds.");
  return value;
}

bool parse(const std::vector<std::string>& words, Options& options) {
  size_t at = 0;
  for (; at + 1 < words.size() && words[at].starts_with("--"); at += 2) {
    const std::string& value = words[at + 1];
    if (words[at] == "--backend")
      options.backend = value;
    else if (words[at] == "--hold")
      options.hold = value;
    else if (words[at] == "--request-timeout")
      options.timeouts.request = seconds(value);
    else if (words[at] == "--dead-timeout")
      options.timeouts.dead = seconds(value);
    else if (words[at] == "--tls" && value == "required")
      options.tls.wanted = true;
    else if (words[at] == "--tls-ca")
      options.tls.ca = value;
    else if (words[at] == "--tls-certificate")
      options.tls.certificate = value;
    else if (words[at] == "--tls-key")
      options.tls.key = value;
    else if (words[at] == "--tls-name")
      options.tls.server_name = value;
    else
      return false;
  }
  if (at + 1 != words.size() || options.backend.empty() || options.hold.empty()) return false;
  options.component = parse_spec("raw:" + words[at]).top;
  return options.component.kind == Component::Kind::nbd;
}

class Keeper {
 public:
  explicit Keeper(const Options& options) : options_(options) {}

  // State 1.
  void connect() {
    const Export found = open_export(options_.component, options_.tls, kHandshake);
    size_ = found.size;
    socket_ = found.fd;
    index_ = netlink_.connect(found, options_.timeouts, options_.backend);
    try {
      open_device();
      netlink_.disconnect_on_close(index_, options_.backend);
    } catch (...) {
      netlink_.disconnect(index_);
      throw;
    }
  }

  // In place of state 1, where another of us was killed: whether the device is still there. What
  // is about to be disconnected is not.
  bool adopt(bool held) {
    if (!find()) return false;
    try {
      open_device();
      netlink_.disconnect_on_close(index_, options_.backend);
    } catch (const Error&) {
      if (held) return close_device();  // another is connected now
    }
    if (!held) close_device();
    return configured() || close_device();
  }

  // State 3 from there on. The connection may have died while there was none of us; the kernel
  // does not tell whether it takes another one, or has one. Taken, it needs not our copy.
  void keep_adopted() {
    if (device_ >= 0) hold();
    if (!reconnect()) return;
    close(socket_);
    socket_ = -1;
    watch();
  }

  // States 2 and 3, until the device is gone.
  void keep() {
    hold();
    watch();
  }

 private:
  bool find() {
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator("/sys/block", ignored)) {
      const std::string name = entry.path().filename();
      if (!name.starts_with("nbd")) continue;
      index_ = static_cast<uint32_t>(std::strtoul(name.c_str() + 3, nullptr, 10));
      if (!configured()) continue;
      uint64_t sectors = 0;
      std::ifstream(entry.path() / "size") >> sectors;
      size_ = sectors * 512;
      return true;
    }
    return false;
  }

  // Which may disconnect it.
  bool close_device() {
    if (device_ >= 0) close(device_);
    device_ = -1;
    return false;
  }

  void watch() {
    for (;;) {
      if (!wait_for_end() && !still_ours()) return;
      std::cerr << name() << ": the connection to " << options_.component.text()
                << " is lost; connecting again." << std::endl;
      if (!reconnect()) return;
      std::cerr << name() << ": connected again." << std::endl;
    }
  }

  std::string name() const { return "nbd" + std::to_string(index_); }

  void open_device() {
    const std::string path = "/dev/" + name();
    device_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (device_ < 0) throw system_error(errno, "Opening " + path + " failed");
  }

  void hold() const {
    const int watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    const auto deadline = Clock::now() + kLongestHold;
    if (watch >= 0 &&
        inotify_add_watch(watch, options_.hold.c_str(), IN_DELETE_SELF | IN_ATTRIB) >= 0) {
      struct stat info {};
      while (stat(options_.hold.c_str(), &info) == 0 && Clock::now() < deadline) {
        const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
        pollfd polled{watch, POLLIN, 0};
        poll(&polled, 1, static_cast<int>(left.count()));
        char events[4096];
        while (read(watch, events, sizeof events) > 0) {
        }
      }
    }
    if (watch >= 0) close(watch);
    close(device_);
  }

  // Our copy of the kernel's socket tells when it is shut down, by whomever. Without one, the
  // kernel does when the connection dies (true), and sysfs when the device was disconnected.
  bool wait_for_end() {
    if (socket_ < 0) {
      while (configured())
        if (netlink_.link_died(index_, kLook)) return true;
      return false;
    }
    pollfd polled{socket_, POLLRDHUP, 0};
    while (poll(&polled, 1, -1) < 0 && errno == EINTR) {
    }
    return false;
  }

  // The kernel either says that the connection died, or it is disconnecting the device:
  // then sysfs soon has no word of us there.
  bool still_ours() {
    for (int tries = 0; tries < 100; tries++) {
      if (!configured()) return false;
      if (netlink_.link_died(index_, 50ms)) return configured();
    }
    return true;
  }

  bool configured() const {
    std::ifstream in("/sys/block/" + name() + "/backend");
    std::string line;
    return std::getline(in, line) && line == options_.backend;
  }

  bool reconnect() {
    if (socket_ >= 0) close(socket_);
    socket_ = -1;
    std::chrono::milliseconds delay = 100ms;
    std::string said;
    for (; configured(); delay = std::min(delay * 2, kLongestDelay)) {
      try {
        const Export found = open_export(options_.component, options_.tls, kHandshake);
        socket_ = found.fd;
        if (found.size != size_)
          throw Error(ESTALE, "The export has " + std::to_string(found.size) +
                                  " bytes now, where it had " + std::to_string(size_) +
                                  "; give it back its size.");
        netlink_.reconnect(index_, socket_, options_.backend);
        return true;
      } catch (const Error& error) {
        if (said != error.what()) std::cerr << name() << ": " << error.what() << std::endl;
        said = error.what();
        if (socket_ >= 0) close(socket_);
        socket_ = -1;
      }
      std::this_thread::sleep_for(delay);
    }
    return false;
  }

  const Options options_;
  Netlink netlink_;
  uint64_t size_ = 0;
  uint32_t index_ = 0;
  int socket_ = -1;
  int device_ = -1;
};

// Disks wait for us: no page of ours may wait for them.
void protect() {
  mlockall(MCL_CURRENT | MCL_FUTURE);
  prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
  std::ofstream("/proc/self/oom_score_adj") << -1000;
}

// A parent that ends tells that the device is there.
void go_on_in_background() {
  const pid_t pid = fork();
  if (pid < 0) throw system_error(errno, "Making a process to watch the connection failed");
  if (pid > 0) _exit(0);
  setsid();
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  dup2(null, STDIN_FILENO);
  dup2(null, STDOUT_FILENO);
  // The journal, if systemd started us; a pipe of whoever waits for our parent must not stay open.
  if (!getenv("INVOCATION_ID")) dup2(null, STDERR_FILENO);
  close(null);
}

}  // namespace

}  // namespace cowd::nbd

int main(int argc, char** argv) {
  using namespace cowd::nbd;
  Options options;
  try {
    if (!parse({argv + 1, argv + argc}, options)) return usage();
  } catch (const cowd::Error& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  if (chdir("/") < 0) return 1;
  try {
    Keeper keeper(options);
    const bool held = access(options.hold.c_str(), F_OK) == 0;
    const bool found = keeper.adopt(held);
    if (!found && !held) return 0;
    if (!found) keeper.connect();
    go_on_in_background();
    protect();
    if (found)
      keeper.keep_adopted();
    else
      keeper.keep();
    return 0;
  } catch (const cowd::Error& error) {
    std::ofstream(options.hold) << cowd::errno_name(error.code()) << ": " << error.what();
    std::cerr << error.what() << "\n";
    return 1;
  }
}
