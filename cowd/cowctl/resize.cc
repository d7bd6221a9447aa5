// SPDX-License-Identifier: GPL-2.0-or-later
// cowctl resize [--shrink] SPEC [+|-]SIZE
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

std::string both(uint64_t bytes) {
  return cowd::format_size(bytes) + " (" + std::to_string(bytes) + " bytes)";
}

// `text`: a size, or by how much it changes.
uint64_t size_from(const std::string& text, uint64_t now) {
  const bool relative = text.starts_with('+') || text.starts_with('-');
  const uint64_t size = cowd::parse_size(relative ? text.substr(1) : text, "SIZE");
  if (!relative) return size;
  if (text[0] == '-' && size >= now)
    throw Error(EINVAL, "The disk has " + both(now) + ", and " + text +
                            " would leave nothing of it; give a smaller SIZE.");
  if (text[0] == '+' && size > UINT64_MAX - now)
    throw Error(EINVAL, "A disk cannot have so many bytes more as " + text + " says.");
  return text[0] == '-' ? now - size : now + size;
}

uint64_t size_now(Context& context, const OfflineDisk& disk) {
  const json info = cowd::run_to_end(context.io, disk.format->info(disk.top.disk));
  return info.value("virtual-size", uint64_t{0});
}

}  // namespace

int run_resize(Context& context) {
  OfflineDisk disk = find_disk(context);
  if (!disk.format->resize)
    throw Error(EOPNOTSUPP, "The size of a disk of the format " + disk.spec.format +
                                " does not change: make a new one and copy the data.");
  open_disk(context, &disk, cowd::BackingUse::change);
  const uint64_t before = size_now(context, disk);
  cowd::ResizeRequest request;
  request.size = size_from(context.options.size, before);
  if (request.size < before && !context.options.shrink)
    throw Error(EINVAL, "The disk has " + both(before) + ", and what is behind the first " +
                            both(request.size) +
                            " would be lost; make file systems smaller first, then say --shrink.");
  request.top = disk.top.disk;
  request.base = disk.base.disk;
  request.references = references_for(context, disk);
  {
    ProgressLine line(context, "resizing " + disk.spec.top.text());
    request.progress = [&](uint64_t done, uint64_t total) { line.update(done, total); };
    cowd::run_to_end(context.io, disk.format->resize(std::move(request)));
  }
  if (context.options.json)
    print_json(std::cout, cowd::run_to_end(context.io, disk.format->info(disk.top.disk)));
  else
    context.say("The disk has " + both(size_now(context, disk)) + " now.");
  return 0;
}

}  // namespace cowctl
