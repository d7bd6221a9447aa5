// SPDX-License-Identifier: GPL-2.0-or-later
// cowctl rebase SPEC -b FILE [-F FORMAT] [-u]
//
// Where the old base and the new one differ, and the image has nothing of its own, it gets what
// the old one has; durably, before the name is changed.
#include <exception>
#include <iostream>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/image_rebase.hh"
#include "cowd/core/run.hh"
#include "cowd/core/units.hh"
#include "cowd/cowctl/commands.hh"
#include "cowd/cowctl/offline_image.hh"
#include "cowd/cowctl/output.hh"
#include "cowd/cowctl/progress.hh"

namespace cowctl {

namespace {

cowd::RebaseRequest request_from(const Options& options, const OfflineDisk& disk) {
  if (options.backing_file.empty() && !options.backing_format.empty())
    throw Error(EINVAL, "-F says a format, and -b says that there is to be no base.");
  if (!options.backing_file.empty() && options.backing_format.empty())
    throw Error(EINVAL, "-b needs -F, the format of " + options.backing_file +
                            " (raw, qcow2, ...): a format is never guessed.");
  cowd::RebaseRequest request;
  request.top = disk.top.disk;
  request.file = options.backing_file;
  request.format = options.backing_format;
  return request;
}

// They read what lies beneath too, and nothing is copied into them.
void refuse_snapshots(Context& context, const OfflineDisk& disk) {
  const json info = cowd::run_to_end(context.io, disk.format->info(disk.top.disk));
  const auto count = info.value("snapshots", uint64_t{0});
  if (count > 0)
    throw Error(EOPNOTSUPP, disk.spec.top.text() + " has " + std::to_string(count) +
                                " internal snapshots, which would change with the base: delete "
                                "them first, or use -u if the new base reads as the old one does.");
}

Task<uint64_t> copy(WritableImage writable, std::shared_ptr<cowd::References> references,
                    cowd::RebaseRequest request, cowd::Progress progress) {
  std::unique_ptr<cowd::Image> next;
  if (!request.file.empty())
    next = co_await references->image(*request.top, request.file, request.format);
  const std::unique_ptr<cowd::Image> image = co_await writable.open();
  uint64_t bytes = 0;
  std::exception_ptr failure;
  try {
    bytes = co_await cowd::copy_up(*image, next.get(), progress);
  } catch (...) {
    failure = std::current_exception();
  }
  // Also after a failure: what was copied may stay, and the file gets its length again.
  try {
    co_await image->close();
    const uint64_t used = image->used_bytes();
    if (used && used < request.top->size()) co_await request.top->resize(used);
    co_await request.top->flush();
  } catch (...) {
    if (!failure) failure = std::current_exception();
  }
  if (failure) std::rethrow_exception(failure);
  co_return bytes;
}

uint64_t copy_what_differs(Context& context, const OfflineDisk& disk,
                           const cowd::RebaseRequest& request) {
  refuse_snapshots(context, disk);
  ProgressLine line(context, "rebasing " + disk.spec.top.text());
  const cowd::Progress progress = [&](uint64_t done, uint64_t total) { line.update(done, total); };
  WritableImage writable(*disk.format, disk.top.disk, references_for(context, disk));
  // A chain of its own: the new base may be part of the old chain.
  return cowd::run_to_end(
      context.io, copy(std::move(writable), references_for(context, disk), request, progress));
}

}  // namespace

int run_rebase(Context& context) {
  OfflineDisk disk = find_disk(context);
  if (!disk.format->rebase)
    throw Error(EOPNOTSUPP, "The base of an image of the format " + disk.spec.format +
                                " cannot be changed by cowctl; nothing was changed.");
  refuse_in_use(disk, "rebased");
  open_disk(context, &disk, cowd::BackingUse::change);
  cowd::RebaseRequest request = request_from(context.options, disk);
  request.dry = true;
  cowd::run_to_end(context.io, disk.format->rebase(request));
  uint64_t copied = 0;
  if (!context.options.unsafe) copied = copy_what_differs(context, disk, request);
  request.dry = false;
  cowd::run_to_end(context.io, disk.format->rebase(request));
  if (context.options.json)
    print_json(std::cout, {{"filename", disk.spec.top.text()},
                           {"base", request.file},
                           {"base-format", request.format},
                           {"copied", copied}});
  else
    context.say("Rebased " + disk.spec.top.text() + " to " +
                (request.file.empty() ? "no base" : request.file) + ": " +
                cowd::format_size(copied) + " were copied.");
  return 0;
}

}  // namespace cowctl
