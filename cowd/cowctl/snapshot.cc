// SPDX-License-Identifier: GPL-2.0-or-later
// cowctl snapshot [--list | --create NAME | --apply NAME | --delete NAME] SPEC
#include <ctime>
#include <iostream>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/run.hh"
#include "cowd/core/units.hh"
#include "cowd/cowctl/commands.hh"
#include "cowd/cowctl/output.hh"
#include "cowd/cowctl/progress.hh"

namespace cowctl {

namespace {

using Action = cowd::SnapshotRequest::Action;

struct Wanted {
  Action action;
  std::string name;
  const char* doing;
  const char* done;
};

// What is to be done; nothing: they are listed.
std::optional<Wanted> wanted_of(const Options& options) {
  std::optional<Wanted> found;
  int count = options.snapshot_list;
  const auto take = [&](const std::optional<std::string>& name, Action action, const char* doing,
                        const char* done) {
    if (!name) return;
    found = Wanted{action, *name, doing, done};
    count++;
  };
  take(options.snapshot_create, Action::create, "making", "was made");
  take(options.snapshot_apply, Action::apply, "going back to", "is what the disk has now");
  take(options.snapshot_delete, Action::remove, "deleting", "was deleted");
  if (count > 1)
    throw Error(EINVAL, "Of --list, --create, --apply and --delete only one is done at a time.");
  return found;
}

// The keys are those of 'qemu-img info'.
json to_json(const cowd::Snapshot& snapshot) {
  constexpr uint64_t kSecond = 1000000000;
  json object = {{"id", snapshot.id},
                 {"name", snapshot.name},
                 {"disk-size", snapshot.disk_bytes},
                 {"vm-state-size", snapshot.vm_state_bytes},
                 {"date-sec", snapshot.date_sec},
                 {"date-nsec", snapshot.date_nsec},
                 {"vm-clock-sec", snapshot.vm_clock_nsec / kSecond},
                 {"vm-clock-nsec", snapshot.vm_clock_nsec % kSecond}};
  if (snapshot.icount != UINT64_MAX) object["icount"] = snapshot.icount;
  return object;
}

std::string date_of(const cowd::Snapshot& snapshot) {
  const auto seconds = static_cast<time_t>(snapshot.date_sec);
  tm local{};
  char text[32] = "-";
  if (localtime_r(&seconds, &local)) std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &local);
  return text;
}

std::string clock_of(const cowd::Snapshot& snapshot) {
  const uint64_t ms = snapshot.vm_clock_nsec / 1000000;
  char text[48];
  std::snprintf(text, sizeof text, "%02llu:%02llu:%02llu.%03llu",
                static_cast<unsigned long long>(ms / 3600000),
                static_cast<unsigned long long>(ms / 60000 % 60),
                static_cast<unsigned long long>(ms / 1000 % 60),
                static_cast<unsigned long long>(ms % 1000));
  return text;
}

void print(const Context& context, const std::vector<cowd::Snapshot>& list) {
  if (context.options.json) {
    json all = json::array();
    for (const cowd::Snapshot& each : list) all.push_back(to_json(each));
    print_json(std::cout, all);
    return;
  }
  if (list.empty()) {
    context.say("There are no snapshots.");
    return;
  }
  using enum Table::Align;
  Table table({{"ID"}, {"Name"}, {"Disk", right}, {"VM state", right}, {"Date"}, {"VM clock"}});
  for (const cowd::Snapshot& each : list)
    table.add({each.id, each.name, cowd::format_size(each.disk_bytes),
               cowd::format_size(each.vm_state_bytes), date_of(each), clock_of(each)});
  table.print(std::cout);
}

void carry_out(Context& context, const OfflineDisk& disk, const Wanted& wanted) {
  ProgressLine line(context, std::string(wanted.doing) + " snapshot " + wanted.name + " of " +
                                 disk.spec.top.text());
  cowd::SnapshotRequest request;
  request.top = disk.top.disk;
  request.action = wanted.action;
  request.name = wanted.name;
  request.progress = [&](uint64_t done, uint64_t total) { line.update(done, total); };
  cowd::run_to_end(context.io, disk.format->snapshot(std::move(request)));
}

}  // namespace

int run_snapshot(Context& context) {
  const std::optional<Wanted> wanted = wanted_of(context.options);
  OfflineDisk disk = find_disk(context);
  if (!disk.format->snapshots)
    throw Error(EOPNOTSUPP, "The format " + disk.spec.format +
                                " keeps no snapshots in its images; qcow2 does.");
  open_disk(context, &disk, wanted ? cowd::BackingUse::change : cowd::BackingUse::look);
  if (wanted) carry_out(context, disk, *wanted);
  if (!wanted || context.options.json)
    print(context, cowd::run_to_end(context.io, disk.format->snapshots(disk.top.disk)));
  else
    context.say("Snapshot " + wanted->name + " " + wanted->done + ".");
  return 0;
}

}  // namespace cowctl
