// SPDX-License-Identifier: GPL-2.0-or-later
// Settings of the host's own programs, read as these read them.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace cowctl {

// The value of the last KEY=VALUE line (blanks around '=', quotes around the value);
// what iscsid.conf and the files in /etc/default are made of.
std::optional<std::string> setting(const std::string& text, const std::string& key);

// The strings of KEY=["x","y"] or KEY="x" in what lvmconfig prints.
std::vector<std::string> lvm_strings(const std::string& text, const std::string& key);

// Whether LVM reads a device of these names under a filter (lvm.conf(5): "a|regex|" and
// "r|regex|"; each name is judged by the first pattern that matches it, one accepted
// name is enough, and what no pattern matches is read).
bool lvm_reads(const std::vector<std::string>& filter, const std::vector<std::string>& names);

// `filter` so changed that LVM does not read what is below /dev/dmu, as a line for the
// section devices of lvm.conf. Nothing if a pattern that accepts `names` stands in the way.
std::optional<std::string> lvm_filter_line(const std::vector<std::string>& filter,
                                           const std::vector<std::string>& names);

// For how long guests wait for a lost server, as the text of cowd.toml says it: "60s"; nothing:
// for ever. Throws Error(EINVAL) for what is no TOML.
std::optional<std::string> backing_loss_timeout(const std::string& text, const std::string& file);

}  // namespace cowctl
