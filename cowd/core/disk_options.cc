// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/disk_options.hh"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <vector>

#include "cowd/core/disk_options_toml.hh"
#include "cowd/core/error.hh"
#include "cowd/core/toml.hh"
#include "cowd/core/units.hh"

namespace cowd {

namespace fs = std::filesystem;

namespace {

struct File {
  std::string content;
  bool secret = false;  // root's alone
};

std::optional<File> read_file(const fs::path& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return std::nullopt;
  File file;
  struct stat info {};
  if (fstat(fd, &info) == 0)
    file.secret = info.st_uid == geteuid() && (info.st_mode & (S_IRWXG | S_IRWXO)) == 0;
  char part[4096];
  for (ssize_t count; (count = read(fd, part, sizeof part)) > 0 && file.content.size() < 1 << 20;)
    file.content.append(part, static_cast<size_t>(count));
  close(fd);
  return file;
}

std::string need_string(const toml::value& value, const std::string& where) {
  if (!value.is_string()) throw Error(EINVAL, where + " has to be a string in quotes.");
  const std::string text = value.as_string().str;
  // Lines of open-iscsi's records are what they become.
  if (text.empty() || text.size() > 255 ||
      std::any_of(text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }))
    throw Error(EINVAL, where + " has to be 1 to 255 printable characters.");
  return text;
}

void take_chap(const toml::value& table, const std::string& file, DiskOptions& options) {
  if (!table.is_table()) throw Error(EINVAL, file + ": chap has to be a table: [chap].");
  for (const auto& [key, value] : table.as_table()) {
    std::string* to = key == "user"              ? &options.user
                      : key == "password"        ? &options.password
                      : key == "target_user"     ? &options.target_user
                      : key == "target_password" ? &options.target_password
                                                 : nullptr;
    if (!to)
      throw Error(EINVAL, file + " has the key chap." + key +
                              ", which is not known; user, password, target_user and "
                              "target_password are.");
    *to = need_string(value, file + ": chap." + key);
  }
  if (options.user.empty() || options.password.empty() ||
      options.target_user.empty() != options.target_password.empty())
    throw Error(EINVAL, file +
                            ": [chap] needs user and password, and target_user and "
                            "target_password both or neither.");
}

void take_tls(const toml::value& table, const std::string& file, DiskOptions& options) {
  if (!table.is_table()) throw Error(EINVAL, file + ": tls has to be a table: [tls].");
  DiskOptions::Tls tls;
  for (const auto& [key, value] : table.as_table()) {
    std::string* to = key == "ca"            ? &tls.ca
                      : key == "certificate" ? &tls.certificate
                      : key == "key"         ? &tls.key
                      : key == "server_name" ? &tls.server_name
                                             : nullptr;
    if (!to)
      throw Error(EINVAL, file + " has the key tls." + key +
                              ", which is not known; ca, certificate, key and server_name are.");
    *to = need_string(value, file + ": tls." + key);
    if (to != &tls.server_name && (*to)[0] != '/')
      throw Error(EINVAL, file + ": tls." + key + " has to be a path from / on.");
  }
  if (tls.certificate.empty() != tls.key.empty())
    throw Error(EINVAL, file + ": [tls] needs certificate and key both, or neither.");
  options.tls = tls;
}

// Whether the specification, which may be wrong, has such a component.
bool is_over(const toml::value& table, Component::Kind kind) {
  if (!table.contains("spec") || !table.at("spec").is_string()) return true;
  try {
    const DiskSpec spec = parse_spec(table.at("spec").as_string().str);
    return spec.top.kind == kind || (spec.base && spec.base->kind == kind);
  } catch (const Error&) {
    return true;  // whoever uses the specification is told
  }
}

bool names(const toml::value& table, const Component& component) {
  if (!table.contains("spec") || !table.at("spec").is_string()) return false;
  const DiskSpec spec = parse_spec(table.at("spec").as_string().str);
  return spec.top == component || (spec.base && *spec.base == component);
}

}  // namespace

DiskOptions check_disk_options(const toml::value& table, const std::string& file) {
  DiskOptions options;
  std::optional<std::string> on_loss;
  std::optional<uint64_t> seconds;
  for (const auto& [key, value] : table.as_table()) {
    if (key == "spec") continue;
    if (key == "on_backing_loss") {
      on_loss = need_string(value, file + ": on_backing_loss");
    } else if (key == "backing_loss_timeout") {
      const auto time = parse_duration(need_string(value, file + ": backing_loss_timeout"),
                                       file + ": backing_loss_timeout");
      seconds = std::max<int64_t>(1, std::chrono::ceil<std::chrono::seconds>(time).count());
    } else if (key == "keep_on_reboot") {
      if (!value.is_boolean())
        throw Error(EINVAL, file + ": keep_on_reboot has to be true or false.");
      options.keep_on_reboot = value.as_boolean();
    } else if (key == "chap") {
      take_chap(value, file, options);
    } else if (key == "tls") {
      take_tls(value, file, options);
      if (!is_over(table, Component::Kind::nbd))
        throw Error(EINVAL, file + " has a table [tls], but its disk has no nbd:// in it.");
    } else {
      throw Error(EINVAL,
                  file + " has the key '" + key +
                      "', which is not known; 'spec' is, 'on_backing_loss', "
                      "'backing_loss_timeout', 'keep_on_reboot' and the tables 'chap' and 'tls'.");
    }
  }
  if (on_loss && *on_loss != "wait" && *on_loss != "error")
    throw Error(EINVAL, file + ": on_backing_loss has to be \"wait\" or \"error\".");
  if (seconds && on_loss != "error")
    throw Error(EINVAL,
                file + ": backing_loss_timeout needs on_backing_loss = \"error\" beside it.");
  if (on_loss == "wait") options.loss = DiskOptions::Loss{};
  if (on_loss == "error") options.loss = DiskOptions::Loss{seconds.value_or(60)};
  return options;
}

DiskOptions disk_options(const Component& component, const fs::path& dir) {
  std::set<fs::path> paths;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(dir, ignored))
    if (entry.path().extension() == ".toml") paths.insert(entry.path());
  for (const fs::path& path : paths) {
    const auto file = read_file(path);
    if (!file) continue;
    toml::value table;
    try {
      table = parse_toml(file->content, path.string());
      if (!names(table, component)) continue;
    } catch (const std::exception&) {
      continue;  // whoever uses that disk is told
    }
    const DiskOptions options = check_disk_options(table, path.string());
    if (!options.password.empty() && !file->secret)
      throw Error(EPERM, path.string() +
                             " has a password in it and others than root may read or write it; "
                             "say chown root and chmod 600 on it.");
    return options;
  }
  return {};
}

}  // namespace cowd
