// SPDX-License-Identifier: GPL-2.0-or-later
// hog KIB: keeps all memory but KIB in use until it is killed, and says "full" when that is
// so. When the kernel takes the process that has the memory, another one begins anew.
#include "tests/system/hog.hh"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  const uint64_t leave_kib = argc == 2 ? strtoull(argv[1], nullptr, 10) : 0;
  if (leave_kib == 0) {
    fprintf(stderr, "usage: hog KIB\n");
    return 2;
  }
  setvbuf(stdout, nullptr, _IOLBF, 0);
  for (;;) {
    const pid_t pid = fork();
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      hog::eat(leave_kib, [] { puts("full"); });
    }
    if (pid < 0 || waitpid(pid, nullptr, 0) != pid) {
      perror("hog");
      return 1;
    }
    puts("killed");
  }
}
