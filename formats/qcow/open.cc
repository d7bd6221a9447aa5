// SPDX-License-Identifier: GPL-2.0-or-later
#include <algorithm>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/signatures.hh"
#include "formats/growing/image.hh"
#include "formats/qcow/qcow.hh"
#include "formats/qcow/tables.hh"

namespace cowd::qcow {
namespace {

using growing::Parts;

// Raw is what is meant where the image says nothing. A file that is an image for sure is not
// served as if it were none; what that is stays for the operator to say.
Task<> require_raw(const Disk& top, const std::string& file, Beneath& beneath) {
  Buffer head(std::min<uint64_t>(kSignatureSpan, beneath.sectors() * kSector));
  co_await beneath.read_bytes({0, head.size() / kSector}, head);
  for (const Signature& found : find_signatures(head))
    if (found.image)
      throw Error(EINVAL, top.name() + " lies on " + file +
                              " and does not say in which format that is, so it is raw; but it "
                              "looks like " +
                              found.what + ". Say which it is: cowctl rebase -u -b " + file +
                              " -F FORMAT qcow:" + top.name());
}

Task<std::unique_ptr<Beneath>> open_beneath(const OpenRequest& request, const Header& header) {
  BackingName backing = co_await read_backing_name(*request.top, header);
  if (backing.file.empty()) co_return nullptr;
  const bool said = !backing.format.empty();
  if (!said) backing.format = "raw";
  std::unique_ptr<Beneath> beneath = co_await open_backing(request, backing, 1);
  if (!said) co_await require_raw(*request.top, backing.file, *beneath);
  co_return beneath;
}

// What lies beneath may have larger blocks than the image, and then the whole device has.
void require_growable(const Disk& top, const Header& header, const Clusters::Use& use,
                      const Beneath* beneath) {
  if (!use.errors.empty())
    throw Error(EINVAL, use.errors.front() +
                            " The image is damaged: attach it read-only and copy what can be "
                            "read.");
  const uint32_t block = beneath ? beneath->block_size() : top.block_size();
  if (header.cluster() < block || (!use.aligned && block > kSector))
    throw Error(EINVAL, top.name() + " lies on a disk with blocks of " + std::to_string(block) +
                            " bytes, and its clusters do not fit those: attach it read-only, or "
                            "convert it.");
}

}  // namespace

Task<std::unique_ptr<Image>> open(OpenRequest request) {
  growing::require_sensible(request, "qcow");
  Disk& top = *request.top;
  const Header header = co_await read_header(top);
  auto clusters = std::make_unique<Clusters>(top, header, request.metadata_cache);
  co_await clusters->load();
  Parts parts;
  parts.beneath = co_await open_beneath(request, header);
  if (!request.read_only) {
    const Clusters::Use use = co_await clusters->used(Clusters::Look::overlaps);
    require_growable(top, header, use, parts.beneath.get());
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
