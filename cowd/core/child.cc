// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/child.hh"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>

#include "cowd/core/errno_name.hh"
#include "cowd/core/fd.hh"
#include "cowd/core/thread.hh"

namespace cowd {

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMaxSaid = 16 << 20;
constexpr auto kGrace = std::chrono::seconds(2);
constexpr const char* kPath = "/usr/sbin:/usr/bin:/sbin:/bin";

struct Pipe {
  Fd read, write;
};

Pipe make_pipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) < 0) throw system_error(errno, "Making a pipe for a program failed");
  return {Fd(ends[0]), Fd(ends[1])};
}

// Its standard input: a file in memory, so that there is nobody to feed.
Fd input_of(const std::string& input) {
  Fd fd(input.empty() ? open("/dev/null", O_RDONLY | O_CLOEXEC)
                      : memfd_create("input", MFD_CLOEXEC));
  const auto size = static_cast<ssize_t>(input.size());
  if (fd.get() < 0 || (size > 0 && (write(fd.get(), input.data(), input.size()) != size ||
                                    lseek(fd.get(), 0, SEEK_SET) < 0)))
    throw system_error(errno, "Making the input of a program failed");
  return fd;
}

// Ours alone: the child's end must block as it is used to.
void set_nonblocking(const Fd& fd) {
  fcntl(fd.get(), F_SETFL, fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
}

std::string find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) return name;
  const std::string path = kPath;
  for (size_t at = 0; at <= path.size();) {
    const size_t end = std::min(path.find(':', at), path.size());
    std::string file = path.substr(at, end - at) + "/" + name;
    if (access(file.c_str(), X_OK) == 0) return file;
    at = end + 1;
  }
  throw Error(ENOENT, "The program " + name + " is not installed (looked for in " + path +
                          "); install the package that has it.");
}

std::vector<char*> pointers(const std::vector<std::string>& words) {
  std::vector<char*> list;
  for (const std::string& word : words) list.push_back(const_cast<char*>(word.c_str()));
  list.push_back(nullptr);
  return list;
}

// The attributes and file actions of posix_spawn(), freed at the end.
class Plan {
 public:
  Plan(int in, int out, int err) {
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_init(&actions);
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(
        &attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    posix_spawn_file_actions_adddup2(&actions, in, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, err, STDERR_FILENO);
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
  }
  ~Plan() {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  posix_spawnattr_t attributes;
  posix_spawn_file_actions_t actions;
};

class Child {
 public:
  Child(const std::vector<std::string>& argv, const ChildOptions& options)
      : name_(argv.front()), options_(options) {
    const Fd in = input_of(options.input);
    Pipe out = make_pipe(), err = make_pipe();
    set_nonblocking(out.read);
    set_nonblocking(err.read);
    start(argv, Plan(in.get(), out.write.get(), err.write.get()));
    out_ = std::move(out.read);
    err_ = std::move(err.read);
  }
  ~Child() {
    if (pid_ > 0) end(Clock::now());
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  ChildResult wait() {
    // A child made by clone() that has ended is readable; until it is reaped its number is its.
    if (!talk_until(Clock::now() + options_.limit)) {
      end(Clock::now() + kGrace);
      throw Error(ETIMEDOUT,
                  name_ + " did not end within " + std::to_string(options_.limit.count() / 1000) +
                      " s and was killed" +
                      (last_words(result_.err).empty() ? std::string(".")
                                                       : "; it said: " + last_words(result_.err)));
    }
    reap();
    read_all();  // what was left in the pipes; children of its own may hold them open
    if (result_.out.size() + result_.err.size() > kMaxSaid)
      throw Error(EOVERFLOW, name_ + " said more than 16 MiB, which nobody wants to hear.");
    return std::move(result_);
  }

 private:
  void start(const std::vector<std::string>& argv, const Plan& plan) {
    const std::string program = find_program(name_);
    std::vector<std::string> environment = {std::string("PATH=") + kPath, "LC_ALL=C.UTF-8",
                                            "HOME=/"};
    environment.insert(environment.end(), options_.environment.begin(), options_.environment.end());
    const int code = posix_spawn(&pid_, program.c_str(), &plan.actions, &plan.attributes,
                                 pointers(argv).data(), pointers(environment).data());
    if (code != 0) {
      pid_ = -1;
      throw Error(code, "The program " + program + " cannot be started: " + errno_text(code) + ".");
    }
    pidfd_ = Fd(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
    if (pidfd_.get() < 0) {
      const int why = errno;
      end(Clock::now());
      throw system_error(why, "Watching the program " + program + " failed");
    }
  }

  // Reads what it says until it ends (true) or the time is over.
  bool talk_until(Clock::time_point deadline) {
    for (;;) {
      std::array<pollfd, 3> polled = {
          {{pidfd_.get(), POLLIN, 0}, {out_.get(), POLLIN, 0}, {err_.get(), POLLIN, 0}}};
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
      if (left <= 0) return false;
      const int count = poll(polled.data(), polled.size(), static_cast<int>(left) + 1);
      if (count < 0 && errno != EINTR)
        throw system_error(errno, "Waiting for the program " + name_ + " failed");
      if (count <= 0) continue;
      if (polled[1].revents) read_some(out_, result_.out);
      if (polled[2].revents) read_some(err_, result_.err);
      if (polled[0].revents) return true;
    }
  }

  // Gives false when there is no more now; at the end of file the pipe is closed.
  static bool read_some(Fd& from, std::string& to) {
    std::array<char, 16384> part;
    const ssize_t count = ::read(from.get(), part.data(), part.size());
    if (count < 0 && errno == EINTR) return true;
    if (count < 0 && errno == EAGAIN) return false;
    if (count <= 0) {
      from.reset();
      return false;
    }
    // Read on even if it is too much: a writer that blocks would never end.
    if (to.size() <= kMaxSaid) to.append(part.data(), static_cast<size_t>(count));
    return true;
  }

  void read_all() {
    while (out_.get() >= 0 && read_some(out_, result_.out)) {
    }
    while (err_.get() >= 0 && read_some(err_, result_.err)) {
    }
  }

  // SIGTERM, and at `deadline` SIGKILL, to all of its group.
  void end(Clock::time_point deadline) {
    if (deadline > Clock::now()) {
      ::kill(-pid_, SIGTERM);
      try {
        if (talk_until(deadline)) return reap();
      } catch (const Error&) {
      }
    }
    ::kill(-pid_, SIGKILL);
    pollfd polled{pidfd_.get(), POLLIN, 0};
    if (pidfd_.get() < 0 || poll(&polled, 1, 1000) > 0) return reap();
    leave_to_thread();
  }

  void reap() {
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    if (WIFEXITED(status)) result_.exit_code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) result_.signal = WTERMSIG(status);
  }

  void leave_to_thread() {
    const pid_t pid = std::exchange(pid_, -1);
    start_thread(
        [pid] {
          while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
          }
        },
        64 << 10);
  }

  const std::string name_;
  const ChildOptions& options_;
  pid_t pid_ = -1;
  Fd pidfd_, out_, err_;
  ChildResult result_;
};

}  // namespace

ChildResult run_child(const std::vector<std::string>& argv, const ChildOptions& options) {
  return Child(argv, options).wait();
}

std::string run_tool(const std::string& purpose, const std::vector<std::string>& argv,
                     const ChildOptions& options) {
  ChildResult result = run_child(argv, options);
  if (result.ok()) return std::move(result.out);
  std::string why = last_words(result.err);
  if (why.empty()) why = last_words(result.out);
  const std::string how =
      result.signal ? argv.front() + " was ended by signal " + std::to_string(result.signal)
                    : argv.front() + " ended with status " + std::to_string(result.exit_code);
  throw Error(EIO, purpose + ": " + how + (why.empty() ? "." : " and said: " + why));
}

std::string last_words(const std::string& said) {
  constexpr size_t kMost = 400;
  std::string line;
  for (const char c : said.substr(said.size() > 4 * kMost ? said.size() - 4 * kMost : 0)) {
    const bool space = c == '\n' || c == '\r' || c == '\t' || c == ' ';
    if (space && (line.empty() || line.back() == ' ')) continue;
    line += space ? ' ' : static_cast<unsigned char>(c) < 0x20 ? '?' : c;
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line.size() > kMost ? "..." + line.substr(line.size() - kMost) : line;
}

}  // namespace cowd
