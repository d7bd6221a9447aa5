// SPDX-License-Identifier: GPL-2.0-or-later
// What every command has at hand.
#pragma once

#include <utility>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <boost/asio/io_context.hpp>
#include <nlohmann/json_fwd.hpp>

#include "cowd/core/backing.hh"
#include "cowd/core/error.hh"
#include "cowd/core/plugin_loader.hh"
#include "cowd/core/references.hh"
#include "cowd/cowctl/options.hh"

namespace cowctl {

using cowd::Error;
using cowd::Task;
using nlohmann::json;

struct Context {
  explicit Context(Options o)
      : options(std::move(o)),
        plugins(cowd::PluginLoader::default_directories(options.plugin_dirs)) {}

  const Options options;
  boost::asio::io_context io;
  cowd::PluginLoader plugins;

  // Says something to people who did not ask for quiet; one line, on stdout.
  void say(const std::string& line) const;
  void warn(const std::string& sentence) const;

  std::shared_ptr<cowd::AsyncIo> async_io();

 private:
  std::shared_ptr<cowd::AsyncIo> async_io_;
};

// --- cowd's side (ask.cc) ---

// Sends one request and shows its progress as `what`. Throws what cowd refused.
json ask(Context& context, const json& request, const std::string& what);
// The same, but nothing if no cowd is there, or it has no such device.
std::optional<json> ask_if_attached(Context& context, const json& request, const std::string& what);
// The same, but throws ETIMEDOUT where there is no answer within `limit`; until then
// it asks again a cowd that went away before it had answered.
json ask_within(Context& context, std::chrono::seconds limit, const json& request,
                const std::string& what);
// Each line before the final one goes to `on_line` as it comes.
json ask_lines(Context& context, const json& request, std::function<void(const json&)> on_line);

// --- images that nobody serves (offline.cc) ---

struct OfflineDisk {
  cowd::DiskSpec spec;
  const cowd::FormatDescriptor* format = nullptr;
  cowd::Backing top;
  cowd::Backing base;  // no disk in it without one
};

// Reads the specification and loads its format's plugin.
OfflineDisk find_disk(Context& context);  // of options.target
OfflineDisk find_disk(Context& context, const std::string& spec);
void open_disk(Context& context, OfflineDisk* disk, cowd::BackingUse top_use);
// What the image in disk->top names is opened by it; after open_disk().
std::shared_ptr<cowd::FileReferences> references_for(Context& context, const OfflineDisk& disk);
// Whether options.target can only be a specification.
bool is_spec(const std::string& target);

}  // namespace cowctl
