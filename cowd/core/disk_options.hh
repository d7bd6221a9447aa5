// SPDX-License-Identifier: GPL-2.0-or-later
// What DIR/NAME.toml says of a named disk beside its specification: what must not
// stand in a specification, which guests can read. docs/backings.md has the keys.
//
// It is looked up by what is opened, not by name: an export or target has the options of the
// named disk whose specification has it as TOP or BASE. So a restarted cowd finds them, too, and a
// password is asked for only where it is needed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "cowd/core/spec.hh"

namespace cowd {

struct DiskOptions {
  struct Loss {
    std::optional<uint64_t> seconds;  // none: wait
  };
  std::optional<Loss> loss;  // on_backing_loss
  std::optional<bool> keep_on_reboot;
  // CHAP, empty where there is none; the target_ ones are what the target has to prove.
  std::string user, password, target_user, target_password;
  // TLS to an NBD server: paths of PEM files, empty where there is none.
  struct Tls {
    std::string ca, certificate, key, server_name;
  };
  std::optional<Tls> tls;
};

struct NamedDisk {
  DiskSpec spec;  // names no other
  DiskOptions options;
};
// DIR/NAME.toml. Throws Error with a sentence: ENOENT, EINVAL.
NamedDisk read_named_disk(const std::string& name, const std::filesystem::path& dir);

// The options of the first of the directory's files that names `component`; none are no error, nor
// are files that cannot be read. Throws Error(EPERM) for a password in a file that others
// than root may read or write, EINVAL for wrong options.
DiskOptions disk_options(const Component& component, const std::filesystem::path& dir);

}  // namespace cowd
