// SPDX-License-Identifier: GPL-2.0-or-later
#include <utility>

#include "cowd/core/error.hh"
#include "formats/growing/image.hh"
#include "formats/vhd/parent.hh"
#include "formats/vhd/tables.hh"
#include "formats/vhd/vhd.hh"

namespace cowd::vhd {
namespace {

using growing::GrowingImage;
using growing::Parts;

void require_fixed_size(const Disk& top, const Footer& footer) {
  if (footer.size > top.size() - kFooterBytes)
    throw Error(EINVAL, top.name() + ", a fixed VHD, is too short: its disk has " +
                            std::to_string(footer.size) + " bytes and the file " +
                            std::to_string(top.size()) + ". If it was cut off, copy it again.");
}

Task<std::unique_ptr<Beneath>> open_parent(const OpenRequest& request, const Header& header) {
  Disk& top = *request.top;
  if (!request.references)
    throw Error(EINVAL, top.name() +
                            " is a differencing VHD, and images that name others are not opened "
                            "here: convert it with its parent to one image.");
  const std::string path = co_await parent_path(top, header);
  std::unique_ptr<Image> parent = co_await request.references->image(top, path, "vhd");
  const nlohmann::json said = parent->stats();
  const std::string wanted = to_string(header.parent);
  if (said.value("uuid", "") != wanted)
    throw Error(EINVAL, path + " is not the parent of " + top.name() + ": its unique id is " +
                            said.value("uuid", "unknown") + ", and that of the parent is " +
                            wanted + ". Put the right file there.");
  co_return std::make_unique<Beneath>(std::move(parent), 1, request.top->block_size());
}

void require_growable(const OpenRequest& request, const BlockTables& tables, uint64_t end) {
  const Disk& top = *request.top;
  if (const auto found = tables.overlaps(); !found.empty())
    throw Error(EINVAL, top.name() + ", a VHD image, is damaged: " + found.front() +
                            " Attach it read-only and copy what can be read.");
  if (!tables.aligned_to(top.block_size()))
    throw Error(EINVAL, top.name() + " lies on a disk with blocks of " +
                            std::to_string(top.block_size()) +
                            " bytes, and its data does not begin at those: attach it read-only, or "
                            "convert it to a format that does.");
  if (end * kSector > top.size() - kFooterBytes)
    throw Error(EINVAL, top.name() +
                            ", a VHD image, has no room for its footer at the end: make it larger, "
                            "or attach it read-only.");
}

Task<std::unique_ptr<Image>> open_blocks(OpenRequest request, Footer footer) {
  Disk& top = *request.top;
  const Header header = co_await read_header(top, footer);
  Parts parts;
  auto tables = std::make_unique<BlockTables>(top, footer, header);
  co_await tables->load();
  if (footer.type == Type::differencing) {
    parts.beneath = co_await open_parent(request, header);
  }
  if (!request.read_only) {
    const uint64_t end = co_await tables->used_end();
    require_growable(request, *tables, end);
    parts.spaces = {tables->space(end, (top.size() - top.block_size()) / kSector)};
    parts.shape = {8, lead_sectors(header.block_bytes)};
  }
  parts.own = {{request.top.get(), !request.read_only}};
  parts.tables = std::move(tables);
  parts.request = std::move(request);
  co_return std::make_unique<GrowingImage>(std::move(parts));
}

}  // namespace

Task<std::unique_ptr<Image>> open(OpenRequest request) {
  growing::require_sensible(request, "VHD");
  const Footers footers = co_await read_footers(*request.top);
  if (!request.read_only && !request.reattach) require_good_start(*request.top, footers);
  if (footers.current.type != Type::fixed)
    co_return co_await open_blocks(std::move(request), footers.current);
  require_fixed_size(*request.top, footers.current);
  Parts parts;
  parts.own = {{request.top.get(), !request.read_only}};
  parts.tables = std::make_unique<FixedTables>(footers.current);
  parts.request = std::move(request);
  co_return std::make_unique<GrowingImage>(std::move(parts));
}

// All blocks, the footer, and the padding that the first one may need.
Task<uint64_t> room(std::shared_ptr<Disk> top) {
  const Footers footers = co_await read_footers(*top);
  if (footers.current.type == Type::fixed) co_return top->size();
  require_good_start(*top, footers);
  const Header header = co_await read_header(*top, footers.current);
  BlockTables tables(*top, footers.current, header);
  co_await tables.load();
  const uint64_t end = co_await tables.used_end();
  const uint64_t blocks = (footers.current.size + header.block_bytes - 1) / header.block_bytes;
  const uint64_t slot = lead_sectors(header.block_bytes) * kSector + header.block_bytes;
  const uint64_t most =
      round_up(end * kSector, 4096) + (blocks - tables.allocated()) * slot + growing::kSlack;
  co_return std::max(most, top->size());
}

}  // namespace cowd::vhd
