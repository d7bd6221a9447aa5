// SPDX-License-Identifier: GPL-2.0-or-later
#include <fstream>
#include <iterator>

#include "build/config.h"
#include "cowd/core/disk_options_toml.hh"
#include "cowd/core/errno_name.hh"
#include "cowd/core/spec.hh"
#include "cowd/core/toml.hh"

namespace cowd {

const char* const kDisksDir = COWD_SYSCONF_DIR "/disks.d";

NamedDisk read_named_disk(const std::string& name, const std::filesystem::path& dir) {
  const std::string file = dir / (name + ".toml");
  std::ifstream stream(file, std::ios::binary);
  if (!stream)
    throw Error(ENOENT, "The disk @" + name + " has no file " + file +
                            " that can be read; write one, with spec = \"FORMAT:TOP:BASE\".");
  const toml::value table =
      parse_toml({std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()}, file);
  const DiskOptions options = check_disk_options(table, file);
  if (!table.contains("spec") || !table.at("spec").is_string())
    throw Error(EINVAL, file + " needs spec = \"FORMAT:TOP:BASE\".");
  const DiskSpec inner = parse_spec(table.at("spec").as_string().str);
  if (!inner.named.empty())
    throw Error(EINVAL,
                file + " names another disk, @" + inner.named + "; write its specification.");
  return {inner, options};
}

DiskSpec resolve_named_spec(const DiskSpec& spec, const std::filesystem::path& dir) {
  return spec.named.empty() ? spec : read_named_disk(spec.named, dir).spec;
}

}  // namespace cowd
