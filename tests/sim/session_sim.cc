// SPDX-License-Identifier: GPL-2.0-or-later
// session-sim [--seconds N] [--seed N] [--one] [--trace]: plays lives of disks (session_world.hh),
// one a seed, from a seed on until the time is over, and says what they survived; with --one that
// of the seed alone.
#include <getopt.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <string>

#include "tests/sim/session_world.hh"

namespace {

using namespace cowd::sim;

// The real one; std::chrono's stands still here.
double now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

void say(const SessionCounts& all, uint64_t lives) {
  const auto line = [](const char* what, uint64_t count) {
    std::printf("%12llu %s\n", static_cast<unsigned long long>(count), what);
  };
  const auto figure = [](uint64_t count) { return static_cast<unsigned long long>(count); };
  std::printf(
      "# figure: %llu operations of guests survived %llu machine crashes and %llu daemon "
      "crashes, %llu of them while something was being recovered\n",
      figure(all.operations), figure(all.machine_crashes), figure(all.daemon_crashes),
      figure(all.crashes_in_recovery));
  line("lives of disks, one a seed", lives);
  line("operations on disks", all.disk_operations);
  line("messages between kernel and cowd", all.messages);
  line("hand-overs from one cowd to the next", all.hand_overs);
  line("clean ends, followed by an attach of this host or another", all.detaches);
  line("times that a disk failed an operation", all.failures);
  line("times that a disk stood still", all.stalls);
  line("times that disks were full", all.full_disks);
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 60;
  uint64_t seed = 1;
  bool one = false, trace = false;
  const option options[] = {{"seconds", required_argument, nullptr, 's'},
                            {"seed", required_argument, nullptr, 'n'},
                            {"one", no_argument, nullptr, '1'},
                            {"trace", no_argument, nullptr, 't'},
                            {}};
  for (int c; (c = getopt_long(argc, argv, "", options, nullptr)) != -1;) {
    if (c == 's') seconds = std::atof(optarg);
    if (c == 'n') seed = std::strtoull(optarg, nullptr, 10);
    if (c == '1') one = true;
    if (c == 't') trace = true;
    if (c == '?') return 2;
  }
  SessionCounts all;
  uint64_t lives = 0;
  const double end = now() + seconds;
  for (; one ? lives == 0 : now() < end; seed++, lives++) {
    const auto& varieties = session_varieties();
    const SessionVariety& variety = varieties[seed % varieties.size()];
    SessionWorld world(variety, seed);
    if (trace) world.trace();
    try {
      world.play();
    } catch (const std::exception& error) {
      std::printf("seed %llu (%s), after %llu steps: %s\nagain: session-sim --one --seed %llu\n",
                  static_cast<unsigned long long>(seed), variety.name.c_str(),
                  static_cast<unsigned long long>(world.counts().steps), error.what(),
                  static_cast<unsigned long long>(seed));
      return 1;
    }
    all += world.counts();
    if (one) std::printf("%llu steps\n", static_cast<unsigned long long>(world.counts().steps));
  }
  say(all, lives);
}
