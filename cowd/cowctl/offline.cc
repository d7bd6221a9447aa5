// SPDX-License-Identifier: GPL-2.0-or-later
#include <utility>

#include "cowd/core/references.hh"
#include "cowd/cowctl/context.hh"

namespace cowctl {

OfflineDisk find_disk(Context& context) { return find_disk(context, context.options.target); }

OfflineDisk find_disk(Context& context, const std::string& spec) {
  OfflineDisk disk;
  disk.spec = cowd::resolve_named_spec(cowd::parse_spec(spec));
  disk.format = &context.plugins.load(disk.spec.format);
  if (disk.spec.base && !disk.format->wants_base)
    throw Error(EINVAL, "The format " + disk.spec.format + " has no base, and " +
                            disk.spec.base->text() + " is given as one; leave it out.");
  return disk;
}

void open_disk(Context& context, OfflineDisk* disk, cowd::BackingUse top_use) {
  if (disk->spec.base && cowd::same_backing(disk->spec.top, *disk->spec.base))
    throw Error(EINVAL, disk->spec.top.text() + " and " + disk->spec.base->text() +
                            " are the same, so the first write would change the base.");
  disk->top = cowd::open_backing(context.async_io(), disk->spec.top, top_use);
  // A tool only reads a base, so a file needs no loop device.
  if (disk->spec.base)
    disk->base = cowd::open_backing(context.async_io(), *disk->spec.base, cowd::BackingUse::look);
}

std::shared_ptr<cowd::FileReferences> references_for(Context& context, const OfflineDisk& disk) {
  return std::make_shared<cowd::FileReferences>(context.async_io(), &context.plugins,
                                                cowd::FileReferences::Purpose::tool, disk.spec.top,
                                                disk.top.disk);
}

bool is_spec(const std::string& target) {
  return target.starts_with('@') || target.find(':') != std::string::npos;
}

}  // namespace cowctl
