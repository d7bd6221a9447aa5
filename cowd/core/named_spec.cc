// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/spec.hh"

#include <fstream>

#include <toml.hpp>

#include "cowd/core/disk_options_toml.hh"
#include "cowd/core/errno_name.hh"

namespace cowd {

DiskSpec resolve_named_spec(const DiskSpec& spec, const std::filesystem::path& dir) {
  if (spec.named.empty()) return spec;
  const std::string file = dir / (spec.named + ".toml");
  std::ifstream stream(file, std::ios::binary);
  if (!stream)
    throw Error(ENOENT, "The disk @" + spec.named + " has no file " + file +
                            " that can be read; write one, with spec = \"FORMAT:TOP:BASE\".");
  toml::value table;
  try {
    table = toml::parse(stream, file);
  } catch (const std::exception& e) {
    throw Error(EINVAL, file + " is not TOML: " + e.what());
  }
  check_disk_options(table, file);
  if (!table.contains("spec") || !table.at("spec").is_string())
    throw Error(EINVAL, file + " needs spec = \"FORMAT:TOP:BASE\".");
  const DiskSpec inner = parse_spec(table.at("spec").as_string().str);
  if (!inner.named.empty())
    throw Error(EINVAL,
                file + " names another disk, @" + inner.named + "; write its specification.");
  return inner;
}

}  // namespace cowd
