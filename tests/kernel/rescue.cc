// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/kernel/rescue.hh"

#include <dirent.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <vector>

#include "dmu.h"
#include "tests/kernel/case.hh"

namespace dmutest::rescue {
namespace {

std::string line_of(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

// Names of the test's dm devices, from sysfs: that never waits.
std::vector<std::string> devices() {
  std::vector<std::string> found;
  std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir("/sys/block"), closedir);
  while (dirent* entry = dir ? readdir(dir.get()) : nullptr) {
    if (strncmp(entry->d_name, "dm-", 3) != 0) continue;
    std::string name = line_of("/sys/block/" + std::string(entry->d_name) + "/dm/name");
    if (name.rfind(kPrefix, 0) == 0) found.push_back(name);
  }
  return found;
}

using ChannelPtr = std::unique_ptr<dmu_channel, void (*)(dmu_channel*)>;

void fail_everything(dmu_channel* channel) {
  dmu_msg in[64];
  for (ssize_t n; (n = dmu_channel_receive(channel, in, 64)) > 0;)
    for (ssize_t i = 0; i < n; i++) {
      if (!in[i].id || in[i].type == DMU_MSG_INVALIDATED) continue;
      dmu_msg out = dmu_msg_fail(in[i].id, 0);
      dmu_channel_send(channel, &out, 1, nullptr);
    }
}

class Rescuer {
 public:
  void step() {
    for (const std::string& name : devices()) step(name);
  }

 private:
  void step(const std::string& name) {
    dmu_info info{};
    info.size = sizeof info;
    if (dmu_get_info(name.c_str(), &info, nullptr)) return;
    if (info.flags & DMU_INFO_SUSPENDED) dmu_resume(name.c_str(), 0, nullptr);
    if (!info.open_count) {
      channels_.erase(name);
      dmu_remove(name.c_str(), 0, nullptr);
      return;
    }
    dmu_channel* raw = nullptr;
    int r = channels_.count(name) ? 0 : dmu_channel_open_dev(info.major, info.minor, &raw, nullptr);
    if (raw) channels_.emplace(name, ChannelPtr(raw, dmu_channel_close));
    if (r == -EBUSY) replace_by_error(name);
    if (auto at = channels_.find(name); at != channels_.end()) fail_everything(at->second.get());
  }

  // A process whose own I/O hangs never closes its channel: push the bios back, and
  // let another target fail them.
  void replace_by_error(const std::string& name) {
    dmu_table table{};
    int status = 0;
    table.size = sizeof table;
    if (Clock::now() - since_ < Ms(2'000) || dmu_get_table(name.c_str(), &table, nullptr)) return;
    run({"dmsetup", "load", name, "--table", "0 " + std::to_string(table.sectors) + " error"}, &status);
    if (status || dmu_suspend(name.c_str(), DMU_NOFLUSH, nullptr)) return;
    dmu_resume(name.c_str(), 0, nullptr);
  }

  std::map<std::string, ChannelPtr> channels_;
  Clock::time_point since_ = Clock::now();
};

}  // namespace

void free_devices(const std::function<bool()>& idle) {
  Rescuer rescuer;
  auto end = Clock::now() + Ms(10'000);
  for (;;) {
    bool ended = idle();  // before the look: what ended after it left nothing new
    if (ended && devices().empty()) return;
    if (Clock::now() > end) return;
    rescuer.step();
    if (!devices().empty() || !ended) poll(nullptr, 0, 20);
  }
}

std::string describe() {
  std::ostringstream out;
  for (const std::string& name : devices()) {
    dmu_status s{};
    s.size = sizeof s;
    if (dmu_get_status(name.c_str(), &s, nullptr)) continue;
    out << name << " " << dmu_state_name(s.state) << ", " << s.faults_outstanding << " faults, " << s.bios_parked << " parked, "
        << s.uncommitted << " uncommitted; ";
  }
  return out.str();
}

}  // namespace dmutest::rescue
