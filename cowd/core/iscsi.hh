// SPDX-License-Identifier: GPL-2.0-or-later
// Logical units of iSCSI targets, through open-iscsi (iscsid, iscsiadm).
//
// Our sessions go through an interface record of our own, "cowd", so that the kernel says which
// they are (/sys/class/iscsi_session/*/ifacename): a restarted cowd finds them, and those of
// others, even to the same target, are neither used nor logged out. All units of one target and
// portal share a session. Who uses it holds a shared lock (flock(2)) on its directory in sysfs,
// which ends with its process; who gets that lock alone and finds no disk of the session open logs
// out.
//
// Passwords go from the file of a named disk into the node record (0600, below
// /etc/iscsi/nodes) without being an argument of any program; the record goes with the session.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "cowd/core/disk_options.hh"
#include "cowd/core/spec.hh"

namespace cowd {

struct BackingSettings;  // backing.hh

class IscsiUnit {
 public:
  // Logs in if need be; blocks for up to 25 s: off the strands. Throws Error.
  static std::shared_ptr<IscsiUnit> attach(const Component& component,
                                           const BackingSettings& settings,
                                           const DiskOptions& options);
  // The last one of a session logs out, which may take seconds.
  ~IscsiUnit();
  // Logs out of our sessions that nobody uses. May block; throws nothing.
  static void release_unused();
  // The disks of all our sessions: "sdc".
  static std::vector<std::string> own_disks();
  IscsiUnit(const IscsiUnit&) = delete;
  IscsiUnit& operator=(const IscsiUnit&) = delete;

  const std::string& path() const { return path_; }  // /dev/sdc

 private:
  explicit IscsiUnit(Component component);
  const Component component_;
  int claim_ = -1;  // the lock on the session
  std::string path_;
};

// What makes two names one store: the target's name and the unit, whatever the portal and the
// session. The second is for a block device of whatever kind, "" for one that is no such disk.
std::string iscsi_identity(const Component& component);
std::string iscsi_identity(dev_t device);

}  // namespace cowd
