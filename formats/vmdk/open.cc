// SPDX-License-Identifier: GPL-2.0-or-later
#include <cstdio>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/growing/image.hh"
#include "formats/vmdk/vmdk.hh"

namespace cowd::vmdk {
namespace {

using growing::GrowingImage;
using growing::Parts;

constexpr uint64_t kTextRoom = 64 << 10;

// 1 where nothing is sparse.
uint64_t grain_of(const std::vector<Part>& parts) {
  for (const Part& part : parts)
    if (part.sparse) return part.sparse->header().grain;
  return 1;
}

Task<std::unique_ptr<Beneath>> open_parent(const OpenRequest& request, const Descriptor& descriptor,
                                           uint32_t first_dest) {
  Disk& top = *request.top;
  if (descriptor.parent.empty())
    throw Error(EINVAL, top.name() +
                            " has a parent and does not say which: set parentFileNameHint in its "
                            "descriptor.");
  if (!request.references)
    throw Error(EINVAL, top.name() + " has a parent, " + descriptor.parent +
                            ", and images that name others are not opened here: convert it with "
                            "its parent to one image.");
  std::unique_ptr<Image> parent =
      co_await request.references->image(top, descriptor.parent, "vmdk");
  const nlohmann::json said = parent->stats();
  char wanted[9];
  std::snprintf(wanted, sizeof wanted, "%08x", descriptor.parent_cid);
  if (said.value("cid", "") != wanted)
    throw Error(EINVAL, descriptor.parent + " is not as it was when " + top.name() +
                            " was made on it: its CID is " + said.value("cid", "unknown") +
                            ", and it was " + wanted +
                            ". Put the right file there; a parent must never be written to.");
  co_return std::make_unique<Beneath>(std::move(parent), first_dest);
}

void require_writable(const Disk& top, const Top& said, const std::vector<Part>& parts) {
  const auto refuse = [&top](const std::string& why) {
    return Error(EOPNOTSUPP, top.name() + " cannot be written to: " + why +
                                 ". Attach it read-only, or convert it.");
  };
  const uint64_t grain = grain_of(parts);
  for (size_t i = 0; i < parts.size(); i++) {
    const Part& part = parts[i];
    if (part.zeroes) throw refuse("a part of it has no file");
    if (!part.sparse && part.offset * 512 % part.disk->block_size() != 0)
      throw refuse("its extent " + said.descriptor.extents[i].file +
                   " does not begin at a block of its disk");
    if (!said.sparse && said.descriptor.extents[i].access != "RW")
      throw refuse("its extent " + said.descriptor.extents[i].file + " is read-only");
    if (part.sparse && !part.sparse->no_writing().empty()) throw refuse(part.sparse->no_writing());
    if (i + 1 < parts.size() && part.range.end() % grain != 0)
      throw refuse("one of its extents, " + said.descriptor.extents[i].file + ", ends in a grain");
  }
}

Task<std::vector<std::shared_ptr<growing::Space>>> spaces_of(const std::vector<Part>& parts) {
  std::vector<std::shared_ptr<growing::Space>> spaces;
  for (const Part& part : parts) {
    std::shared_ptr<growing::Space> space;
    if (part.sparse) space = co_await part.sparse->space();
    spaces.push_back(std::move(space));
  }
  co_return spaces;
}

}  // namespace

Task<std::unique_ptr<Image>> open(OpenRequest request) {
  growing::require_sensible(request, "VMDK");
  const std::shared_ptr<Disk> top = request.top;
  const Top said = co_await read_top(*top);
  const Use use = request.read_only ? Use::read : Use::write;
  std::vector<Part> found =
      co_await open_parts(top, said, request.references.get(), use, request.metadata_cache);
  Parts parts;
  for (const Part& part : found)
    if (part.disk) parts.own.push_back({part.disk.get(), !request.read_only});
  if (!request.read_only) {
    require_writable(*top, said, found);
    parts.spaces = co_await spaces_of(found);
    parts.shape.align = grain_of(found);
  }
  if (said.descriptor.parent_cid != kNoParent)
    parts.beneath =
        co_await open_parent(request, said.descriptor, static_cast<uint32_t>(parts.own.size()));
  auto extents = std::make_unique<Extents>(top, said.descriptor, said.text, std::move(found));
  if (!said.sparse) extents->set_text_bytes(said.text.text.size());
  parts.tables = std::move(extents);
  parts.request = std::move(request);
  co_return std::make_unique<GrowingImage>(std::move(parts));
}

Task<uint64_t> room(std::shared_ptr<Disk> top) {
  const Top said = co_await read_top(*top);
  if (!said.sparse) co_return std::max(top->size(), kTextRoom);
  co_return co_await room_of_extent(top);
}

}  // namespace cowd::vmdk
