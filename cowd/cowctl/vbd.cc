// SPDX-License-Identifier: GPL-2.0-or-later
// cowctl vbd: the disks of Xen guests. block-dmu, Xen's hotplug script, is its user.
#include <charconv>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/json.hh"
#include "cowd/core/left_events.hh"
#include "cowd/cowctl/commands.hh"
#include "cowd/cowctl/output.hh"
#include "cowd/daemon/error_id.hh"

namespace cowctl {

namespace {

constexpr auto kNoLimit = std::chrono::seconds(0);

std::chrono::seconds limit_of(const Options& options) {
  return options.timeout_seconds ? std::chrono::seconds(*options.timeout_seconds) : kNoLimit;
}

json ask_about(Context& context, const char* command, const std::string& what) {
  const std::string& path = context.options.path;
  if (path.empty())
    throw Error(EINVAL, "vbd " + context.options.action +
                            " needs PATH, the disk's node in XenStore: backend/vbd/DOMID/DEVID.");
  const json request = {{"cmd", command}, {"path", path}};
  const auto limit = limit_of(context.options);
  return limit == kNoLimit ? ask(context, request, what)
                           : ask_within(context, limit, request, what);
}

// 0 is a, 25 z, 26 aa.
std::string letters(unsigned disk) {
  std::string text;
  for (unsigned rest = disk + 1; rest > 0; rest = (rest - 1) / 26)
    text.insert(text.begin(), static_cast<char>('a' + (rest - 1) % 26));
  return text;
}

// What the guest calls its disk, from Xen's number for it (xen-vbd-interface(7)).
std::string vdev_of(const std::string& path) {
  const std::string text = path.substr(path.rfind('/') + 1);
  unsigned devid = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), devid);
  if (error != std::errc() || end != text.data() + text.size()) return "disk";
  std::string name;
  unsigned part = 0;
  if (devid >> 28 == 1) {
    name = "xvd" + letters(devid >> 8 & 0xfffff);
    part = devid & 0xff;
  } else if (devid >> 8 == 202) {
    name = "xvd" + letters(devid >> 4 & 15);
    part = devid & 15;
  } else if (devid >> 8 == 8) {
    name = "sd" + letters(devid >> 4 & 15);
    part = devid & 15;
  } else if (devid >> 8 == 3 || devid >> 8 == 22) {
    name = "hd" + letters((devid >> 8 == 22 ? 2 : 0) + (devid >> 6 & 3));
    part = devid & 63;
  } else {
    return "disk " + text;
  }
  return part ? name + std::to_string(part) : name;
}

// The reason, where it could not be cowd that gave it an id and a public half: the next cowd
// then has it in its events.
cowd::Refusal as_refusal(const Context& context, const Error& error) {
  if (const auto* refusal = dynamic_cast<const cowd::Refusal*>(&error))
    if (!refusal->id().empty()) return *refusal;
  const std::string id = cowd::new_error_id();
  const std::string run_dir = std::filesystem::path(context.options.socket).parent_path();
  if (context.options.public_sentence)
    cowd::leave_event(run_dir, {id, context.options.path + ": " + error.what()});
  return {error.code(), error.what() + (" [" + id + "]"), id, ""};
}

void print_public(const Context& context, const cowd::Refusal& refusal) {
  std::string sentence = refusal.public_sentence();
  if (sentence.empty())
    sentence = "The disk " + vdev_of(context.options.path) + " cannot be attached.";
  if (sentence.find(refusal.id()) == std::string::npos) sentence += " [" + refusal.id() + "]";
  if (context.options.json)
    print_json(std::cout, {{"public", sentence}});
  else
    std::cout << "public: " << sentence << std::endl;
}

int add(Context& context) {
  json disk;
  try {
    disk = ask_about(context, "vbd-add", "attaching " + context.options.path);
  } catch (const Error& error) {
    const cowd::Refusal refusal = as_refusal(context, error);
    if (context.options.public_sentence) print_public(context, refusal);
    throw refusal;
  }
  if (context.options.json)
    print_json(std::cout, disk);
  else
    context.say(disk.value("physical_device", "-") + " " + disk.value("device", "-") + " " +
                disk.value("name", "-"));
  return 0;
}

int remove(Context& context) {
  ask_about(context, "vbd-remove", "letting go of " + context.options.path);
  return 0;
}

int list(Context& context) {
  const json answer = ask(context, {{"cmd", "vbd-list"}}, "asking cowd");
  if (context.options.json) {
    print_json(std::cout, answer);
    return 0;
  }
  Table table(
      {{"Node"}, {"Domain"}, {"Disk"}, {"State"}, {"Transient"}, {"Device"}, {"Specification"}});
  for (const json& vbd : answer.value("vbds", json::array()))
    table.add({cell(vbd, "path"), cell(vbd, "domain"), cell(vbd, "vdev"), cell(vbd, "state"),
               cell(vbd, "transient"), cell(vbd, "device"), cell(vbd, "spec")});
  if (!context.options.quiet) table.print(std::cout);
  return 0;
}

}  // namespace

int run_vbd(Context& context) {
  const std::string& action = context.options.action;
  if (action == "add") return add(context);
  if (action == "remove") return remove(context);
  if (!context.options.path.empty())
    throw Error(EINVAL, "vbd list lists all disks and takes no PATH.");
  return list(context);
}

}  // namespace cowctl
