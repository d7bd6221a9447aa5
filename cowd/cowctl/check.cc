// SPDX-License-Identifier: GPL-2.0-or-later
// cowctl check SPEC [--repair] [--force-share]
//
// Exit status as qemu-img check: 0 sound, 1 the check itself failed, 2 corruptions,
// 3 leaks and nothing worse, 63 the format has no check.
#include <utility>

#include <iostream>

#include <nlohmann/json.hpp>

#include "cowd/core/run.hh"
#include "cowd/cowctl/commands.hh"
#include "cowd/cowctl/output.hh"
#include "cowd/cowctl/progress.hh"

namespace cowctl {

namespace {

constexpr int kSound = 0;
constexpr int kCorrupt = 2;
constexpr int kLeaks = 3;
constexpr int kUnsupported = 63;

void refuse_what_is_in_use(const Context& context, const OfflineDisk& disk) {
  if (!cowd::backing_in_use(disk.spec.top)) return;
  const std::string store = disk.spec.top.text();
  if (context.options.repair)
    throw Error(EBUSY, store + " is in use, so it cannot be repaired; detach it first.");
  if (!context.options.force_share)
    throw Error(EBUSY, store +
                           " is in use, and what is being written would be taken for damage; "
                           "detach it first, or use --force-share.");
  context.warn(store + " is in use: a finding may be a write under way.");
}

json to_json(const cowd::CheckResult& result, const OfflineDisk& disk) {
  return {{"filename", disk.spec.top.text()},
          {"format", disk.spec.format},
          {"check-errors", 0},
          {"corruptions", result.errors},
          {"corruptions-fixed", result.errors_fixed},
          {"leaks", result.leaks},
          {"leaks-fixed", result.leaks_fixed},
          {"total-clusters", result.total_granules},
          {"allocated-clusters", result.allocated_granules},
          {"findings", result.findings}};
}

void print_counts(const Context& context, const cowd::CheckResult& result) {
  const auto count = [&](uint64_t n, const char* one, const char* many) {
    if (n > 0) context.say(std::to_string(n) + " " + (n == 1 ? one : many));
  };
  count(result.errors_fixed, "error was repaired.", "errors were repaired.");
  count(result.leaks_fixed, "leak was repaired.", "leaks were repaired.");
  count(result.errors, "error was found on the image.", "errors were found on the image.");
  count(result.leaks, "leak was found: wasted space, no harm to data.",
        "leaks were found: wasted space, no harm to data.");
  if (result.errors == 0 && result.leaks == 0) context.say("No errors were found on the image.");
  if (result.total_granules == 0) return;
  char share[32];
  std::snprintf(share, sizeof share, "%.2f",
                100.0 * static_cast<double>(result.allocated_granules) /
                    static_cast<double>(result.total_granules));
  context.say(std::to_string(result.allocated_granules) + "/" +
              std::to_string(result.total_granules) + " granules = " + share + "% allocated");
}

}  // namespace

int run_check(Context& context) {
  if (context.options.repair && context.options.force_share)
    throw Error(EINVAL, "--force-share only looks, so it does not go with --repair.");
  OfflineDisk disk = find_disk(context);
  if (!disk.format->check) {
    context.warn("The format " + disk.spec.format + " has no check.");
    return kUnsupported;
  }
  refuse_what_is_in_use(context, disk);
  open_disk(context, &disk,
            context.options.repair ? cowd::BackingUse::change : cowd::BackingUse::look);

  cowd::CheckRequest request;
  request.top = disk.top.disk;
  request.base = disk.base.disk;
  request.repair = context.options.repair;
  request.references = references_for(context, disk);
  cowd::CheckResult result;
  {
    ProgressLine line(context, "checking " + disk.spec.top.text());
    request.progress = [&](uint64_t done, uint64_t total) { line.update(done, total); };
    result = cowd::run_to_end(context.io, disk.format->check(std::move(request)));
  }
  if (context.options.json) {
    print_json(std::cout, to_json(result, disk));
  } else {
    for (const auto& finding : result.findings) std::cout << finding << '\n';
    print_counts(context, result);
  }
  return result.errors > 0 ? kCorrupt : result.leaks > 0 ? kLeaks : kSound;
}

}  // namespace cowctl
