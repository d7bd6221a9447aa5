// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/kernel/case.hh"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>

#include "tests/kernel/rescue.hh"

namespace dmutest {
namespace {

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

// The kernel's log from when it was made on.
class KernelLog {
 public:
  KernelLog() : fd_(open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC)) { lseek(fd_, 0, SEEK_END); }
  ~KernelLog() { close(fd_); }

  // The first complaint since the last call, or nothing.
  std::string complaint() {
    static const char* const kWords[] = {"WARNING:", "BUG:", "Oops", "KASAN", "general protection", "possible recursive",
                                         "possible circular", "inconsistent lock", "INFO: task", "INFO: rcu", "refcount_t",
                                         "kernel NULL pointer", "list_del corruption", "list_add corruption", "UBSAN"};
    std::string first;
    char line[8192];
    for (;;) {
      ssize_t n = read(fd_, line, sizeof line - 1);
      if (n < 0 && errno == EPIPE) continue;  // overwritten meanwhile
      if (n <= 0) return first;
      line[n] = 0;
      for (const char* word : kWords)
        if (first.empty() && strstr(line, word)) first = std::string(strchr(line, ';') + 1).substr(0, 200);
    }
  }

 private:
  int fd_;
};

void load_module() {
  if (access("/sys/module/dm_userspace", F_OK) == 0) return;
  utsname name{};
  uname(&name);
  char self[4096];
  ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
  std::string here(self, n > 0 ? n : 0);
  for (int up = 0; up < 3; up++) here.erase(here.rfind('/'));  // build/tests/kernel/NAME
  run({"modprobe", "dm_mod"});
  run({"insmod", here + "/kmod/" + name.release + "/dm-userspace.ko"});
}

// In the child: 0 or 1 as status, the reason through the pipe.
[[noreturn]] void run_child(const Case& c, int why_fd) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT);  // not all of each thread's stack at once
  int status = 0;
  try {
    c.run();
  } catch (const std::exception& e) {
    if (write(why_fd, e.what(), strlen(e.what())) < 0) status = 2;
    status = 1;
  }
  // Threads may still wait for I/O that never ends: no destructors, just go.
  _exit(status);
}

bool wait_child(int pidfd, Ms limit) {
  pollfd p{pidfd, POLLIN, 0};
  return poll(&p, 1, static_cast<int>(limit.count())) == 1;
}

// Until the child ends or says why it fails (it may then hang in exit).
bool wait_verdict(int pidfd, int why_fd, Ms limit) {
  pollfd p[2] = {{pidfd, POLLIN, 0}, {why_fd, POLLIN, 0}};
  return poll(p, 2, static_cast<int>(limit.count())) > 0;
}

std::string reason(int fd) {
  char text[4096];
  fcntl(fd, F_SETFL, O_NONBLOCK);
  ssize_t n = read(fd, text, sizeof text);
  std::string why(text, n > 0 ? n : 0);
  std::replace(why.begin(), why.end(), '\n', ' ');
  return why;
}

// Why the case failed; empty if it did not.
std::string run_case(const Case& c, KernelLog& log) {
  int why[2];
  if (pipe2(why, O_CLOEXEC)) return "pipe failed";
  log.complaint();
  pid_t pid = fork();
  if (pid == 0) run_child(c, why[1]);
  close(why[1]);
  int pidfd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));

  std::string failure;
  int status = 0;
  if (!wait_verdict(pidfd, why[0], c.deadline)) {
    failure = "not done after " + std::to_string(c.deadline.count() / 1000) + " s: " + rescue::describe();
    kill(pid, SIGKILL);
  }
  if (failure.empty()) failure = reason(why[0]);
  // I/O that hangs keeps the child from ending, also one that failed a check.
  rescue::free_devices([&] { return wait_child(pidfd, Ms(0)); });
  if (wait_child(pidfd, Ms(0)))
    waitpid(pid, &status, 0);
  else
    failure += " (its I/O hangs for good)";
  if (failure.empty() && !(WIFEXITED(status) && WEXITSTATUS(status) == 0))
    failure = "died with status " + std::to_string(status);
  close(pidfd);
  close(why[0]);
  std::string complaint = log.complaint();
  if (!complaint.empty()) failure += (failure.empty() ? "" : "; ") + ("kernel: " + complaint);
  return failure;
}

}  // namespace

Register::Register(const char* name, void (*body)(), Ms deadline) { cases().push_back({name, body, deadline}); }

void fail(const char* file, int line, const std::string& why) {
  const char* base = strrchr(file, '/');
  throw Failure(std::string(base ? base + 1 : file) + ":" + std::to_string(line) + ": " + why);
}

void eventually(const char* file, int line, const char* text, const std::function<bool()>& what, Ms limit) {
  auto end = Clock::now() + limit;
  while (!what()) {
    if (Clock::now() > end) fail(file, line, std::string("never: ") + text);
    poll(nullptr, 0, 2);
  }
}

std::string run(const std::vector<std::string>& argv, int* status) {
  int out[2];
  if (pipe2(out, O_CLOEXEC)) FAIL("pipe failed");
  pid_t pid = fork();
  if (pid == 0) {
    std::vector<char*> args;
    for (const std::string& a : argv) args.push_back(const_cast<char*>(a.c_str()));
    args.push_back(nullptr);
    dup2(out[1], 1);
    dup2(out[1], 2);
    execvp(args[0], args.data());
    _exit(127);
  }
  close(out[1]);
  std::string text;
  char buf[4096];
  for (ssize_t n; (n = read(out[0], buf, sizeof buf)) > 0;) text.append(buf, n);
  close(out[0]);
  int raw = 0;
  waitpid(pid, &raw, 0);
  int code = WIFEXITED(raw) ? WEXITSTATUS(raw) : 128 + WTERMSIG(raw);
  if (status)
    *status = code;
  else if (code) {
    std::string command;
    for (const std::string& a : argv) command += a + " ";
    FAIL(command + "gave status " + std::to_string(code) + ": " + text);
  }
  return text;
}

std::string read_file(const std::string& path) {
  std::ifstream in(path);
  if (!in) FAIL("cannot read " + path);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_file(const std::string& path, const std::string& text) {
  int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : write(fd, text.data(), text.size());
  std::string why = strerror(errno);
  if (fd >= 0) close(fd);
  if (n < 0) FAIL("cannot write " + path + ": " + why);
}

}  // namespace dmutest

// All cases, or those whose names begin with an argument.
int main(int argc, char** argv) {
  using namespace dmutest;
  setvbuf(stdout, nullptr, _IOLBF, 0);
  int failed = 0;
  try {
    load_module();
    rescue::free_devices([] { return true; });
  } catch (const std::exception& e) {
    printf("not ok set_up - %s\n", e.what());
    return 1;
  }
  KernelLog log;
  for (const Case& c : cases()) {
    bool wanted = argc < 2;
    for (int i = 1; i < argc; i++) wanted |= strncmp(c.name, argv[i], strlen(argv[i])) == 0;
    if (!wanted) continue;
    auto began = Clock::now();
    std::string why = run_case(c, log);
    if (why.empty()) {
      printf("ok %s (%.1f s)\n", c.name, std::chrono::duration<double>(Clock::now() - began).count());
    } else {
      printf("not ok %s - %s\n", c.name, why.c_str());
      failed++;
    }
  }
  return failed ? 1 : 0;
}
