// SPDX-License-Identifier: GPL-2.0-or-later
// Kills a daemon again and again and measures how long its devices wait.
//
//   killer DEVICE FIRST STEP KILLS LOG -- COWD ARGUMENT...
//
// Starts COWD; KILLS times: at a random moment SIGKILL, start it again the moment it
// is dead, and, from the moment of the kill, read 4 KiB of DEVICE where the kernel
// knows nothing yet (at FIRST, FIRST + STEP, ... bytes; each in a bitmap leaf of its
// own), so that the read is a fault and completes when the new daemon has answered
// it. After every fifth kill the new one is killed too, while it starts. Prints each
// time, the median and the maximum. Leaves no daemon running. What COWD says goes to
// LOG. Status 1 for any I/O error.
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr size_t kProbe = 4096;
constexpr int kLongestUp = 600;      // ms from the first answer to the next kill
constexpr int kLongestStartUp = 60;  // ms into its start that every fifth is killed

[[noreturn]] void fail(const std::string& what) {
  const int error = errno;
  throw std::runtime_error(what + ": " + strerror(error));
}

pid_t start(char** command, const char* log) {
  const pid_t pid = fork();
  if (pid < 0) fail("fork");
  if (pid) return pid;
  const int out = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  dup2(out, 1);
  dup2(out, 2);
  signal(SIGPIPE, SIG_DFL);
  execvp(command[0], command);
  perror(command[0]);
  _exit(127);
}

// Returns the moment of the kill, once the daemon is dead.
Clock::time_point kill_and_reap(pid_t pid) {
  const auto when = Clock::now();
  kill(pid, SIGKILL);
  int status = 0;
  if (waitpid(pid, &status, 0) != pid) fail("waitpid");
  if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
    throw std::runtime_error("the daemon had ended by itself before it was killed: status " +
                             std::to_string(status));
  return when;
}

// When the read was answered.
Clock::time_point probe(int fd, off_t offset) {
  std::unique_ptr<void, decltype(&free)> buffer(aligned_alloc(4096, kProbe), free);
  const ssize_t did = pread(fd, buffer.get(), kProbe, offset);
  if (did != static_cast<ssize_t>(kProbe)) fail("the probe at byte " + std::to_string(offset));
  return Clock::now();
}

struct Plan {
  int fd;
  off_t first, step;
  int kills;
  const char* log;
  char** command;
};

std::vector<long> run(const Plan& plan) {
  std::mt19937 random(20261122);
  const auto wait_up_to = [&](int most) {
    std::this_thread::sleep_for(milliseconds(std::uniform_int_distribution<int>(0, most)(random)));
  };
  pid_t pid = start(plan.command, plan.log);
  probe(plan.fd, plan.first);
  std::vector<long> times;
  for (int i = 1; i <= plan.kills; i++) {
    wait_up_to(kLongestUp);
    const off_t offset = plan.first + plan.step * i;
    const auto killed = kill_and_reap(pid);
    auto answered = std::async(std::launch::async, [&] { return probe(plan.fd, offset); });
    pid = start(plan.command, plan.log);
    if (i % 5 == 0) {
      wait_up_to(kLongestStartUp);
      kill_and_reap(pid);
      pid = start(plan.command, plan.log);
    }
    const auto took = std::chrono::duration_cast<milliseconds>(answered.get() - killed).count();
    printf("kill %d: first fault answered after %ld ms%s\n", i, static_cast<long>(took),
           i % 5 ? "" : " (killed once more while it started)");
    times.push_back(static_cast<long>(took));
  }
  kill_and_reap(pid);
  return times;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 8 || std::string(argv[6]) != "--") {
    fprintf(stderr, "usage: killer DEVICE FIRST STEP KILLS LOG -- COWD ARGUMENT...\n");
    return 2;
  }
  try {
    Plan plan{open(argv[1], O_RDONLY | O_DIRECT | O_CLOEXEC),
              atoll(argv[2]),
              atoll(argv[3]),
              atoi(argv[4]),
              argv[5],
              argv + 7};
    if (plan.fd < 0) fail(argv[1]);
    setvbuf(stdout, nullptr, _IOLBF, 0);
    std::vector<long> times = run(plan);
    std::sort(times.begin(), times.end());
    printf("%zu kills: from kill to first fault answered median %ld ms, maximum %ld ms\n",
           times.size(), times[times.size() / 2], times.back());
  } catch (const std::exception& error) {
    fprintf(stderr, "killer: %s\n", error.what());
    return 1;
  }
  return 0;
}
