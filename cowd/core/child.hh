// SPDX-License-Identifier: GPL-2.0-or-later
// Runs another program to its end: an argument vector, never a shell; nothing on its
// standard input but what is given; what it says is captured; it has a time limit.
//
// The child gets no file of ours but its three, signals as a login has them, a process
// group of its own, and a small fixed environment (PATH, LC_ALL=C.UTF-8). It is reaped when
// run_child() returns; only one that SIGKILL does not end (it waits in the kernel) is left to a
// thread that waits for it.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace cowd {

struct ChildOptions {
  std::chrono::milliseconds limit{30000};
  std::string input;                     // for its standard input
  std::vector<std::string> environment;  // more of it: "NAME=value"
};

struct ChildResult {
  int exit_code = -1;  // -1: ended by a signal
  int signal = 0;
  std::string out;
  std::string err;

  bool ok() const { return exit_code == 0; }
};

// Blocks until the child ends: off the strands only. argv[0] is a path, or a name that is
// looked for in /usr/sbin, /usr/bin, /sbin and /bin. Throws Error: ENOENT (no such
// program), ETIMEDOUT (SIGTERM after `limit`, SIGKILL two seconds later), EOVERFLOW (it said more
// than 16 MiB), EAGAIN.
ChildResult run_child(const std::vector<std::string>& argv, const ChildOptions& options = {});

// The same for one that must succeed; gives what it printed. Otherwise Error(EIO) that
// begins with `purpose` ("Making the volume vg/x failed") and has the last it said.
std::string run_tool(const std::string& purpose, const std::vector<std::string>& argv,
                     const ChildOptions& options = {});

// The end of what a program said, as one line for a sentence.
std::string last_words(const std::string& said);

}  // namespace cowd
