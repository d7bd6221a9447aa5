// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/commands.hh"

#include <linux/dm-userspace.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "build/config.h"
#include "cowd/core/error.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/process.hh"
#include "cowd/daemon/text.hh"
#include "formats/plugin.hh"

namespace cowd {

namespace {

constexpr int kControlAbi = 1;

nlohmann::json version() {
  return {{"version", DMU_VERSION},
          {"abi",
           {{"control", kControlAbi},
            {"kernel", text(DMU_ABI_MAJOR, ".", DMU_ABI_MINOR)},
            {"plugin", kPluginAbi}}},
          {"pid", getpid()}};
}

nlohmann::json nothing() { return nlohmann::json::object(); }

void set_level(const std::string& name) {
  auto level = level_from_name(name);
  if (!level)
    throw Error(EINVAL,
                text("There is no log level \"", name, "\": use debug, info, warning or error."));
  set_log_level(*level);
}

Task<nlohmann::json> stats(DeviceManager& devices, std::optional<std::string> device) {
  nlohmann::json json = co_await devices.stats(std::move(device));
  json["process"] = process_stats();
  json["process"]["log_dropped"] = log_dropped();
  co_return json;
}

// The commands that work on one device and give nothing.
Task<nlohmann::json> on_device(DeviceManager& devices, Task<> (DeviceManager::*work)(std::string),
                               std::string device) {
  co_await (devices.*work)(std::move(device));
  co_return nothing();
}

Task<nlohmann::json> run_vbd(XenLink& xen, const std::string& command, JsonArguments& arguments,
                             std::shared_ptr<ControlServer::Caller> caller) {
  if (command == "vbd-list") {
    arguments.done();
    Vbds* vbds = co_await xen.get();
    co_return co_await vbds->list();
  }
  auto path = arguments.need_string("path");
  arguments.done();
  Vbds* vbds = co_await xen.get();
  if (command == "vbd-remove") {
    co_await vbds->remove(std::move(path));
    co_return nothing();
  }
  std::function<Task<>()> still_wanted = [caller] {
    nlohmann::json line = {{"progress", {{"what", "attached"}, {"done", 1}, {"total", 1}}}};
    return caller->tell(line);
  };
  co_return co_await vbds->add(std::move(path), still_wanted);
}

Task<nlohmann::json> run(DeviceManager& devices, XenLink& xen, const std::string& command,
                         JsonArguments& arguments, std::shared_ptr<ControlServer::Caller> caller) {
  if (command == "vbd-add" || command == "vbd-remove" || command == "vbd-list")
    co_return co_await run_vbd(xen, command, arguments, caller);
  if (command == "stores") {
    arguments.done();
    co_return co_await devices.stores();
  }
  if (command == "store-delete") {
    auto store = arguments.need_string("store");
    arguments.done();
    co_await devices.delete_store(std::move(store));
    co_return nothing();
  }
  if (command == "attach") {
    auto request = attach_request(arguments);
    request.wanted = [caller] { return !caller->gone(); };
    co_return co_await devices.attach(std::move(request));
  }
  if (command == "list" || command == "version") {
    arguments.done();
    if (command == "version") co_return version();
    co_return co_await devices.list();
  }
  if (command == "log-level") {
    auto level = arguments.need_string("level");
    arguments.done();
    set_level(level);
    co_return nothing();
  }
  if (command == "stats") {
    auto device = arguments.string("device");
    arguments.done();
    co_return co_await stats(devices, std::move(device));
  }
  if (command == "map") {
    auto device = arguments.need_string("device");
    auto offset = arguments.number("offset");
    auto length = arguments.number("length");
    arguments.done();
    co_return co_await devices.map(std::move(device), offset, length);
  }
  bool known =
      command == "detach" || command == "info" || command == "pause" || command == "resume";
  if (!known)
    throw Error(EINVAL, text("There is no command \"", command,
                             "\". docs/control-protocol.md lists them."));
  auto device = arguments.need_string("device");
  arguments.done();
  if (command == "info") co_return co_await devices.info(std::move(device));
  auto work = command == "detach"  ? &DeviceManager::detach
              : command == "pause" ? &DeviceManager::pause
                                   : &DeviceManager::resume;
  co_return co_await on_device(devices, work, std::move(device));
}

}  // namespace

ControlServer::Handler make_commands(DeviceManager& devices, XenLink& xen) {
  return [&devices, &xen](const std::string& command, JsonArguments& arguments,
                          std::shared_ptr<ControlServer::Caller> caller) {
    return run(devices, xen, command, arguments, std::move(caller));
  };
}

}  // namespace cowd
