// SPDX-License-Identifier: GPL-2.0-or-later
// open-iscsi's node records: files of "name = value" lines, NODES/TARGET/HOST,PORT,TPGT/INTERFACE,
// read by iscsiadm at login and by iscsid when it is started anew. They are written here and not by
// iscsiadm, which takes values as arguments only, which any user can read in /proc, and whose "new"
// replaces a record that the host's admin may have of the same portal.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "cowd/core/disk_options.hh"

namespace cowd {

inline constexpr const char* kIscsiNodes = "/etc/iscsi/nodes";

struct IscsiRecordName {
  std::string target;
  std::string host;
  uint16_t port = 0;
  std::string interface;
};

// For a target whose portal group is not known before the login: no target's.
inline constexpr int kAnyPortalGroup = 65535;

std::filesystem::path iscsi_record_path(const std::filesystem::path& nodes,
                                        const IscsiRecordName& name, int portal_group);

// Those there are, of any portal group.
std::vector<std::filesystem::path> find_iscsi_records(const std::filesystem::path& nodes,
                                                      const IscsiRecordName& name);

// What our sessions' records say beside what iscsid.conf says.
std::map<std::string, std::string> iscsi_settings(const IscsiRecordName& name,
                                                  std::optional<uint64_t> loss_seconds,
                                                  const DiskOptions& options);

// `record` with these values in place of what it has of them.
std::string changed_iscsi_record(const std::string& record,
                                 const std::map<std::string, std::string>& values);

// Makes the folders it needs; the file is 0600, there as a whole or not at all. Throws Error.
void write_iscsi_record(const std::filesystem::path& nodes, const std::filesystem::path& path,
                        const std::string& record);

// With the folders that are empty then. Throws nothing.
void delete_iscsi_record(const std::filesystem::path& path) noexcept;

}  // namespace cowd
