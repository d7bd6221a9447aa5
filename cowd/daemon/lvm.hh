// SPDX-License-Identifier: GPL-2.0-or-later
// lvm2's commands, as child processes. They read no device of ours: one whose cowd is
// hung or gone would hang them, and what a guest wrote there is no business of this host's.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cowd::lvm {

struct Volume {
  std::string uuid;
  std::string name;
  std::string group;
  std::string path;  // /dev/GROUP/NAME
  uint64_t bytes = 0;
  std::vector<std::string> tags;
  bool active = false;
  bool open = false;
  int64_t created = 0;  // seconds since 1970
};

// All may block as long as LVM's own lock is taken, at most kLimit. Throw Error.
inline constexpr std::chrono::seconds kLimit{25};

// Runs an lvm2 command (argv[0] "lvcreate"); --config comes from here. Gives what it printed.
// ENOSPC and ENOENT for a group that is full or not there, EBUSY for a volume in use, else EIO.
std::string run(const std::string& purpose, std::vector<std::string> argv);

// The volumes that fit a selection (lvmreport(7)): lv_uuid=..., lv_tags=.... Groups that cannot be
// read are left out, with what lvs says of them appended to `complaints`.
std::vector<Volume> volumes(const std::string& selection, std::string* complaints = nullptr);

// What a lvs --reportformat json printed. EPROTO for anything else.
std::vector<Volume> parse_report(std::string_view json);

struct Pool {
  std::string uuid;
  std::string name;  // GROUP/NAME
  uint64_t bytes = 0;
  double data_percent = 0;
  double metadata_percent = 0;
};

// The thin pools with these uuids, those that are there and active. Throws Error, as all above.
std::vector<Pool> pools(const std::vector<std::string>& uuids);

// What such a lvs printed. EPROTO for anything else.
std::vector<Pool> parse_pools(std::string_view json);

// What keeps an lvm2 command off our devices, and from writing where cowd may not: its value
// for --config, as all above have it. May block as they do.
std::string config();

// The value for --config: the host's own global_filter behind the rejection of these
// device-mapper names and numbers ("dm-3"), and of disks of no such name ("sdc", "loop3") with
// their partitions.
struct OwnDevice {
  std::string kernel_name;
  std::string name;
};
std::string config_text(const std::vector<OwnDevice>& ours, const std::string& global_filter);

}  // namespace cowd::lvm
