// SPDX-License-Identifier: GPL-2.0-or-later
// cowctl compare SPEC SPEC [--strict] [--force-share]
//
// Words and exit status as qemu-img compare: 0 the same, 1 they differ, 2 it failed.
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/image_compare.hh"
#include "cowd/core/run.hh"
#include "cowd/cowctl/commands.hh"
#include "cowd/cowctl/offline_image.hh"
#include "cowd/cowctl/output.hh"
#include "cowd/cowctl/progress.hh"

namespace cowctl {

namespace {

using cowd::Difference;
using Kind = Difference::Kind;

constexpr int kSame = 0;
constexpr int kDifferent = 1;
constexpr int kFailed = 2;

struct Opened {
  OfflineDisk disk;
  std::unique_ptr<cowd::Image> image;
};

Opened open(Context& context, const std::string& spec) {
  Opened opened;
  opened.disk = find_disk(context, spec);
  const OfflineDisk& disk = opened.disk;
  if (!context.options.force_share)
    refuse_in_use(disk, "compared", ", or use --force-share");
  else if (cowd::backing_in_use(disk.spec.top))
    context.warn(disk.spec.top.text() + " is in use: it may change while it is read.");
  open_disk(context, &opened.disk, cowd::BackingUse::look);
  opened.image = open_read_only(context, disk, references_for(context, disk));
  return opened;
}

std::string sentence(const Difference& found) {
  const std::string offset = std::to_string(found.offset);
  switch (found.kind) {
    case Kind::none: return "Images are identical.";
    case Kind::size: return "Strict mode: Image size mismatch!";
    case Kind::status: return "Strict mode: Offset " + offset + " block status mismatch!";
    case Kind::content: break;
  }
  return "Content mismatch at offset " + offset + "!";
}

json to_json(const Difference& found) {
  static constexpr const char* kNames[] = {"none", "size", "status", "content"};
  json object = {{"identical", found.kind == Kind::none}};
  if (found.kind != Kind::none) object["mismatch"] = kNames[static_cast<size_t>(found.kind)];
  if (found.kind == Kind::content || found.kind == Kind::status) object["offset"] = found.offset;
  return object;
}

int compare(Context& context) {
  const Options& options = context.options;
  Opened a = open(context, options.target);
  Opened b = open(context, options.other);
  if (a.image->sectors() != b.image->sectors() && !options.strict)
    context.warn(
        "The disks are not of the same size: the shorter one is taken to go on with "
        "zeroes.");
  Difference found;
  {
    ProgressLine line(context, "comparing");
    const cowd::Progress progress = [&](uint64_t done, uint64_t total) {
      line.update(done, total);
    };
    found = cowd::run_to_end(context.io,
                             cowd::compare_images(*a.image, *b.image, options.strict, progress));
  }
  if (options.json)
    print_json(std::cout, to_json(found));
  else
    context.say(sentence(found));
  return found.kind == Kind::none ? kSame : kDifferent;
}

}  // namespace

int run_compare(Context& context) {
  try {
    return compare(context);
  } catch (const Error& e) {
    std::cerr << "cowctl: " << e.what() << '\n';
    return kFailed;
  }
}

}  // namespace cowctl
