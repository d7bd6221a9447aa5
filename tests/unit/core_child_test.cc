// SPDX-License-Identifier: GPL-2.0-or-later
// Programs that cowd runs: what they are given, what is heard of them, and that nothing of
// them stays, however they end.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <thread>
#include <vector>

#include "cowd/core/child.hh"
#include "cowd/core/error.hh"

namespace cowd {
namespace {

using namespace std::chrono_literals;

size_t open_files() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    count++;
  return count;
}

bool has_children() {
  siginfo_t info;
  return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
}

class ChildTest : public testing::Test {
 protected:
  void SetUp() override { before_ = open_files(); }
  void TearDown() override {
    EXPECT_EQ(open_files(), before_);
    EXPECT_FALSE(has_children());
  }
  size_t before_ = 0;
};

int code_of(const std::vector<std::string>& argv, const ChildOptions& options = {}) {
  try {
    run_child(argv, options);
    return 0;
  } catch (const Error& error) {
    return error.code();
  }
}

TEST_F(ChildTest, SaysWhatItSaid) {
  const auto result = run_child({"sh", "-c", "echo out; echo err >&2; exit 3"});
  EXPECT_EQ(result.out, "out\n");
  EXPECT_EQ(result.err, "err\n");
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_FALSE(result.ok());
}

TEST_F(ChildTest, WordsAreNoShells) {
  EXPECT_EQ(run_child({"printf", "%s|", "a b", "$HOME", "`id`", "*", ""}).out,
            "a b|$HOME|`id`|*||");
}

TEST_F(ChildTest, ReadsItsInput) {
  const std::string much(300000, 'x');
  EXPECT_EQ(run_child({"cat"}, {30s, much, {}}).out, much);
  EXPECT_EQ(run_child({"cat"}).out, "");
}

TEST_F(ChildTest, HasASmallEnvironment) {
  setenv("SECRET", "of ours", 1);
  const std::string said = run_child({"env"}, {30s, {}, {"MORE=x"}}).out;
  unsetenv("SECRET");
  EXPECT_EQ(said, "PATH=/usr/sbin:/usr/bin:/sbin:/bin\nLC_ALL=C.UTF-8\nHOME=/\nMORE=x\n");
}

TEST_F(ChildTest, HasNoFilesOfOurs) {
  const int leak = open("/dev/zero", O_RDONLY);  // without O_CLOEXEC
  const std::string said = run_child({"ls", "/proc/self/fd"}).out;
  close(leak);
  EXPECT_EQ(said, "0\n1\n2\n3\n");  // 3 is its own, of the directory
}

TEST_F(ChildTest, HasSignalsAsALoginHasThem) {
  signal(SIGPIPE, SIG_IGN);
  sigset_t all, none;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &none);
  const std::string blocked = run_child({"grep", "^SigBlk", "/proc/self/status"}).out;
  const std::string ignored = run_child({"grep", "^SigIgn", "/proc/self/status"}).out;
  pthread_sigmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  EXPECT_EQ(blocked, "SigBlk:\t0000000000000000\n");
  // Signals 32 and 33 are glibc's own; posix_spawn() leaves them ignored.
  EXPECT_EQ(std::stoull(ignored.substr(8), nullptr, 16) & 0x7fffffff, 0U) << ignored;
}

TEST_F(ChildTest, ThatIsNotThere) {
  EXPECT_EQ(code_of({"there-is-no-such-program"}), ENOENT);
  EXPECT_EQ(code_of({"/dev/null"}), EACCES);
}

TEST_F(ChildTest, ThatIsSlowIsEnded) {
  const auto began = std::chrono::steady_clock::now();
  EXPECT_EQ(code_of({"sleep", "100"}, {100ms, {}, {}}), ETIMEDOUT);
  EXPECT_LT(std::chrono::steady_clock::now() - began, 2s);
}

TEST_F(ChildTest, ThatWantsNoEndIsKilledWithItsChildren) {
  EXPECT_EQ(
      code_of({"sh", "-c", "trap '' TERM; sleep 100 & sleep 100; sleep 100"}, {100ms, {}, {}}),
      ETIMEDOUT);
}

TEST_F(ChildTest, ThatLeavesOneBehindIsNotWaitedForTwice) {
  const auto began = std::chrono::steady_clock::now();
  const auto result = run_child({"sh", "-c", "setsid sleep 5 & echo begun"});
  EXPECT_EQ(result.out, "begun\n");
  EXPECT_LT(std::chrono::steady_clock::now() - began, 4s);
}

TEST_F(ChildTest, ThatDiesOfASignal) {
  const auto result = run_child({"sh", "-c", "kill -SEGV $$"});
  EXPECT_EQ(result.signal, SIGSEGV);
  EXPECT_FALSE(result.ok());
}

TEST_F(ChildTest, ThatSaysTooMuch) {
  EXPECT_EQ(code_of({"head", "-c", "20M", "/dev/zero"}), EOVERFLOW);
}

TEST_F(ChildTest, ToolThatFailsIsToldOf) {
  try {
    run_tool("Making it failed", {"sh", "-c", "echo 'no  room\nleft' >&2; exit 5"});
    FAIL() << "it did not fail";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "Making it failed: sh ended with status 5 and said: no room left");
  }
  EXPECT_EQ(run_tool("Nothing failed", {"echo", "x"}), "x\n");
}

TEST_F(ChildTest, ManyAtATime) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 16; i++)
    threads.emplace_back([i] {
      const std::string mine = std::to_string(i);
      for (int j = 0; j < 5; j++) EXPECT_EQ(run_child({"echo", mine}).out, mine + "\n");
    });
  for (auto& thread : threads) thread.join();
}

}  // namespace
}  // namespace cowd
