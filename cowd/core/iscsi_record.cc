// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/iscsi_record.hh"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <sstream>
#include <utility>

#include "cowd/core/errno_name.hh"

namespace cowd {

namespace fs = std::filesystem;

namespace {

constexpr const char* kAuth = "node.session.auth.";

std::string portal_of(const IscsiRecordName& name) {
  return name.host + "," + std::to_string(name.port) + ",";
}

}  // namespace

fs::path iscsi_record_path(const fs::path& nodes, const IscsiRecordName& name, int portal_group) {
  return nodes / name.target / (portal_of(name) + std::to_string(portal_group)) / name.interface;
}

std::vector<fs::path> find_iscsi_records(const fs::path& nodes, const IscsiRecordName& name) {
  std::vector<fs::path> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(nodes / name.target, ignored)) {
    const fs::path file = entry.path() / name.interface;
    if (entry.path().filename().string().starts_with(portal_of(name)) && fs::exists(file, ignored))
      found.push_back(file);
  }
  return found;
}

std::map<std::string, std::string> iscsi_settings(const IscsiRecordName& name,
                                                  std::optional<uint64_t> loss_seconds,
                                                  const DiskOptions& options) {
  std::map<std::string, std::string> values = {
      {"node.name", name.target},
      {"node.tpgt", "-1"},  // any
      {"node.conn[0].address", name.host},
      {"node.conn[0].port", std::to_string(name.port)},
      {"iface.iscsi_ifacename", name.interface},
      {"iface.transport_name", "tcp"},
      {"node.startup", "manual"},
      {"node.conn[0].startup", "manual"},
      {"node.session.nr_sessions", "1"},
      // A first login is tried anew until 12 s have passed, and a try takes at most 6 s to
      // connect and 6 s to log in: less than 25 s in all, for who attaches a disk for a guest has
      // no more time.
      {"node.conn[0].timeo.login_timeout", "6"},
      {"node.session.initial_login_retry_max", "2"},
      // A session that was lost is tried for ever.
      {"node.session.reopen_max", "0"},
      // -1: requests wait until the session is back.
      {"node.session.timeo.replacement_timeout",
       loss_seconds ? std::to_string(*loss_seconds) : "-1"},
  };
  const std::string auth = kAuth;
  values[auth + "authmethod"] = options.user.empty() ? "None" : "CHAP";
  if (options.user.empty()) return values;
  values[auth + "username"] = options.user;
  values[auth + "password"] = options.password;
  if (!options.target_user.empty()) {
    values[auth + "username_in"] = options.target_user;
    values[auth + "password_in"] = options.target_password;
  }
  return values;
}

std::string changed_iscsi_record(const std::string& record,
                                 const std::map<std::string, std::string>& values) {
  std::string text;
  const auto put_ours = [&] {
    for (const auto& [name, value] : values) text += name + " = " + value + "\n";
  };
  bool ended = false;
  std::istringstream in(record);
  for (std::string line; std::getline(in, line);) {
    if (values.contains(line.substr(0, line.find(" = ")))) continue;
    if (line.starts_with("# END RECORD") && !std::exchange(ended, true)) put_ours();
    text += line + "\n";
  }
  if (!ended) put_ours();
  return text;
}

void write_iscsi_record(const fs::path& nodes, const fs::path& path, const std::string& record) {
  std::error_code ignored;
  fs::create_directories(path.parent_path(), ignored);  // else the rename fails
  // Not where iscsiadm looks for records. mkstemp() makes it 0600.
  std::string temporary = nodes.parent_path() / ".cowd-XXXXXX";
  const int fd = mkstemp(temporary.data());
  bool done = fd >= 0 &&
              write(fd, record.data(), record.size()) == static_cast<ssize_t>(record.size()) &&
              fsync(fd) == 0;
  const int code = errno;
  if (fd >= 0) close(fd);
  errno = code;
  done = done && rename(temporary.c_str(), path.c_str()) == 0;
  if (done) return;
  const Error error =
      system_error(errno, "Writing open-iscsi's record " + path.string() + " failed");
  if (fd >= 0) unlink(temporary.c_str());
  throw error;
}

void delete_iscsi_record(const fs::path& path) noexcept {
  unlink(path.c_str());
  rmdir(path.parent_path().c_str());
  rmdir(path.parent_path().parent_path().c_str());
}

}  // namespace cowd
