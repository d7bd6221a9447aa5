// SPDX-License-Identifier: GPL-2.0-or-later
#include <utility>

#include "cowd/core/error.hh"
#include "formats/growing/image.hh"
#include "formats/qcow/qcow.hh"
#include "formats/qcow/tables.hh"

namespace cowd::qcow {
namespace {

using growing::Parts;

// The format has no place for the backing file's format, and none is ever guessed.
Task<> refuse_backing(Disk& top, const Header& header) {
  const std::string name = co_await backing_name(top, header);
  if (!name.empty())
    throw Error(EOPNOTSUPP,
                top.name() + " lies on " + name +
                    ", and a qcow image cannot say in what format that is: convert it to qcow2 "
                    "(qemu-img convert -f qcow -O qcow2), which takes in what lies beneath.");
}

void require_growable(const Disk& top, const Header& header, const Clusters::Use& use) {
  if (!use.errors.empty())
    throw Error(EINVAL, use.errors.front() +
                            " The image is damaged: attach it read-only and copy what can be "
                            "read.");
  if (header.cluster() < top.block_size() || (!use.aligned && top.block_size() > kSector))
    throw Error(EINVAL, top.name() + " lies on a disk with blocks of " +
                            std::to_string(top.block_size()) +
                            " bytes, and its clusters do not fit those: attach it read-only, or "
                            "convert it.");
}

}  // namespace

Task<std::unique_ptr<Image>> open(OpenRequest request) {
  growing::require_sensible(request, "qcow");
  Disk& top = *request.top;
  const Header header = co_await read_header(top);
  co_await refuse_backing(top, header);
  auto clusters = std::make_unique<Clusters>(top, header, request.metadata_cache);
  co_await clusters->load();
  Parts parts;
  if (!request.read_only) {
    const Clusters::Use use = co_await clusters->used(Clusters::Look::overlaps);
    require_growable(top, header, use);
    const std::shared_ptr<growing::Space> space = clusters->space(use);
    parts.spaces = {space};
    parts.shape.align = header.cluster() / kSector;
    clusters->grow_in(space);
  }
  parts.own = {{request.top.get(), !request.read_only}};
  parts.tables = std::move(clusters);
  parts.request = std::move(request);
  co_return std::make_unique<growing::GrowingImage>(std::move(parts));
}

Task<uint64_t> room(std::shared_ptr<Disk> top) {
  const Header header = co_await read_header(*top);
  Clusters clusters(*top, header);
  co_await clusters.load();
  const Clusters::Use use = co_await clusters.used(Clusters::Look::entries);
  const uint64_t table = round_up(header.table_bytes(), header.cluster());
  // Compressed clusters are given another place too when they are written to.
  const uint64_t more = header.clusters() * header.cluster() + header.tables() * table;
  const uint64_t have = use.clusters * header.cluster() + use.tables * table;
  const uint64_t packed = use.end > have ? 0 : have - use.end;
  const uint64_t most =
      round_up(use.end, header.cluster()) + (more - have) + packed + growing::kSlack;
  co_return std::max(round_up(most, 4096), top->size());
}

}  // namespace cowd::qcow
