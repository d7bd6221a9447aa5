// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/process.hh"

#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "cowd/core/errno_name.hh"
#include "cowd/daemon/service.hh"
#include "cowd/daemon/text.hh"

// Debian 12's headers may be older than the kernel.
#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

namespace cowd {

namespace {

// A hotplug script's lock must not live as long as we do. What the service manager
// passed on purpose stays.
void drop_inherited_files() {
  close_range(3 + static_cast<unsigned>(passed_files()), ~0U, 0);
  int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null > STDIN_FILENO) {
    dup2(null, STDIN_FILENO);
    close(null);
  }
}

bool set_stack_size() {
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return false;
  bool done = pthread_attr_setstacksize(&attributes, kStackBytes) == 0 &&
              pthread_setattr_default_np(&attributes) == 0;
  pthread_attr_destroy(&attributes);
  return done;
}

// Of a device-mapper device with a table of ours.
bool lies_on_ours(const std::string& dev) {
  std::ifstream in("/sys/dev/block/" + dev + "/dm/uuid");
  std::string uuid;
  return in >> uuid && uuid.starts_with("DMU-");
}

// File systems on our own devices, mounted before we were started again: to hold them
// would keep the devices busy after the host has unmounted them.
void drop_mounts_on_ours() {
  std::ifstream in("/proc/self/mountinfo");
  std::string line;
  std::vector<std::string> points;
  while (std::getline(in, line)) {
    std::istringstream fields(line);
    std::string id, parent, dev, root, point;
    if (fields >> id >> parent >> dev >> root >> point && lies_on_ours(dev))
      points.push_back(point);
  }
  for (auto point = points.rbegin(); point != points.rend(); ++point)
    umount2(point->c_str(), MNT_DETACH);
}

// Mounts and unmounts of the host still reach us, so that we hold no file system
// that the host has let go of; ours do not reach the host, and our exit unmounts
// nothing that needs us.
bool own_mounts() {
  if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", nullptr, MS_REC | MS_SLAVE, nullptr) != 0)
    return false;
  drop_mounts_on_ours();
  return true;
}

bool protect_from_oom() {
  std::ofstream out("/proc/self/oom_score_adj");
  out << -1000 << std::flush;
  return static_cast<bool>(out);
}

}  // namespace

std::vector<std::string> prepare_process(const Config::Process& settings) {
  std::vector<std::string> complaints;
  auto want = [&](bool done, const char* what, const char* key) {
    if (!done)
      complaints.push_back(text("cowd could not ", what, " (", errno_text(errno),
                                "). It works without, but is less safe when memory is short; ", key,
                                " = false in the configuration silences this."));
  };
  drop_inherited_files();
  signal(SIGPIPE, SIG_IGN);
  errno = 0;
  if (chdir("/") < 0) complaints.push_back("cowd could not change to the directory /.");
  umask(0077);
  // Each arena of malloc would be one more region to lock.
  mallopt(M_ARENA_MAX, 2);
  set_stack_size();
  if (settings.private_mounts)
    want(own_mounts(), "get mounts of its own", "process.private_mounts");
  if (settings.oom_protect)
    want(protect_from_oom(), "exempt itself from the OOM killer", "process.oom_protect");
  if (settings.io_flusher)
    want(prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0, "tell the kernel that I/O depends on it",
         "process.io_flusher");
  if (settings.lock_memory)
    want(mlockall(MCL_CURRENT | MCL_FUTURE) == 0, "lock its memory", "process.lock_memory");
  return complaints;
}

nlohmann::json process_stats() {
  nlohmann::json json = nlohmann::json::object();
  std::ifstream status("/proc/self/status");
  std::string key;
  while (status >> key) {
    uint64_t value = 0;
    const char* name = key == "VmRSS:"     ? "resident_bytes"
                       : key == "VmLck:"   ? "locked_bytes"
                       : key == "VmHWM:"   ? "peak_resident_bytes"
                       : key == "Threads:" ? "threads"
                                           : nullptr;
    if (name && status >> value) json[name] = key == "Threads:" ? value : value * 1024;
    status.clear();
    status.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return json;
}

}  // namespace cowd
