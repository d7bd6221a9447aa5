// SPDX-License-Identifier: GPL-2.0-or-later
#include <utility>

#include "cowd/core/plugin_loader.hh"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include <dlfcn.h>

#include "build/config.h"
#include "cowd/core/error.hh"

namespace cowd {

namespace fs = std::filesystem;

namespace {

bool plausible_name(const std::string& name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
  });
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

// abi and size come first in every descriptor there will ever be: nothing else is
// looked at before these two are right.
void vet(const FormatDescriptor& format, const std::string& name, const std::string& path) {
  const auto refuse = [&](const std::string& why) { throw Error(ENOEXEC, path + why); };
  if (format.abi != kPluginAbi)
    refuse(" was built for plugin ABI " + std::to_string(format.abi) + "; this is ABI " +
           std::to_string(kPluginAbi) + ". Install the plugin that came with this cowd.");
  if (format.size != sizeof(FormatDescriptor))
    refuse(" has a descriptor of " + std::to_string(format.size) + " bytes where this cowd has " +
           std::to_string(sizeof(FormatDescriptor)) +
           ". Build it against the headers of this cowd.");
  if (!format.name || format.name != name)
    refuse(" calls itself " + std::string(format.name ? format.name : "nothing") +
           "; a plugin's file has its format's name.");
  if (!format.open || !format.info)
    refuse(" can neither open nor describe an image: open and info are what a format must have.");
}

}  // namespace

PluginLoader::PluginLoader(std::vector<std::string> directories)
    : directories_(std::move(directories)) {}

std::vector<std::string> PluginLoader::default_directories(const std::vector<std::string>& first) {
  std::vector<std::string> directories = first;
  if (const char* list = secure_getenv("COWD_PLUGIN_DIR")) {
    std::istringstream stream(list);
    for (std::string one; std::getline(stream, one, ':');)
      if (!one.empty()) directories.push_back(one);
  }
  directories.emplace_back(COWD_PLUGIN_DIR);
  return directories;
}

const FormatDescriptor& PluginLoader::load(const std::string& name) {
  std::lock_guard lock(mutex_);
  if (const auto at = loaded_.find(name); at != loaded_.end()) return *at->second;
  if (plausible_name(name))
    for (const auto& directory : directories_) {
      const fs::path path = fs::path(directory) / (name + ".so");
      std::error_code ignored;
      if (fs::exists(path, ignored)) return open(name, path);
    }
  const auto known = available();
  throw Error(ENOENT, "There is no format '" + name + "' in " + join(directories_) + "; " +
                          (known.empty() ? "there is none at all: check --plugin-dir."
                                         : "there are: " + join(known) + "."));
}

const FormatDescriptor& PluginLoader::open(const std::string& name, const std::string& path) {
  void* object = dlopen(fs::absolute(path).c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!object) {
    const char* why = dlerror();
    throw Error(ENOEXEC, "The plugin " + path + " cannot be loaded: " + (why ? why : "") + ".");
  }
  const auto* format = static_cast<const FormatDescriptor*>(dlsym(object, "cowd_format"));
  if (!format) throw Error(ENOEXEC, path + " is no format plugin: it does not export cowd_format.");
  vet(*format, name, path);
  loaded_[name] = format;
  return *format;
}

std::vector<std::string> PluginLoader::available() const {
  std::vector<std::string> names;
  for (const auto& directory : directories_) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(directory, ignored))
      if (entry.path().extension() == ".so" && plausible_name(entry.path().stem()))
        names.push_back(entry.path().stem());
  }
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

std::vector<std::pair<std::string, std::string>> create_options(const FormatDescriptor& format) {
  std::vector<std::pair<std::string, std::string>> options;
  std::istringstream lines(format.create_options ? format.create_options : "");
  for (std::string line; std::getline(lines, line);)
    if (const auto at = line.find('='); at != std::string::npos)
      options.emplace_back(line.substr(0, at), line.substr(at + 1));
  return options;
}

}  // namespace cowd
