// SPDX-License-Identifier: GPL-2.0-or-later
// Finds format plugins, <directory>/<name>.so, and vets what they export.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "formats/plugin.hh"

namespace cowd {

// Thread safe. A plugin once loaded stays for the life of the process (its code may
// be on a coroutine's stack), so the reference load() gives is good for ever.
class PluginLoader {
 public:
  // Directories are searched in order; the first that has the file decides.
  explicit PluginLoader(std::vector<std::string> directories);

  // `first` (from --plugin-dir; may be empty), then those in $COWD_PLUGIN_DIR
  // (separated by ':'), then the directory of the installation.
  static std::vector<std::string> default_directories(const std::vector<std::string>& first = {});

  // Throws Error: ENOENT (no such format; names those that are there), ENOEXEC (not
  // a plugin, wrong ABI, wrong size, another name).
  const FormatDescriptor& load(const std::string& name);

  // The names for which there is a file, sorted.
  std::vector<std::string> available() const;

 private:
  const FormatDescriptor& open(const std::string& name, const std::string& path);

  std::vector<std::string> directories_;
  std::mutex mutex_;
  std::map<std::string, const FormatDescriptor*> loaded_;
};

// "name" and "meaning" of each create option.
std::vector<std::pair<std::string, std::string>> create_options(const FormatDescriptor& format);

}  // namespace cowd
