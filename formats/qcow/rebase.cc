// SPDX-License-Identifier: GPL-2.0-or-later
// Writes another backing file's name into an image, or none:
//   1. the name, and that of its format, where nothing is that counts; flush
//   2. the header, in the first block: where that is and how long; flush. This is the change
#include <algorithm>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/qcow/qcow.hh"
#include "formats/qcow/tables.hh"

namespace cowd::qcow {
namespace {

// A hole, or the end. The old name stays until the header says the new one.
Task<uint64_t> place_for(Disk& top, const Header& header, uint64_t bytes) {
  Clusters clusters(top, header);
  co_await clusters.load();
  const Clusters::Use use = co_await clusters.used(Clusters::Look::overlaps);
  if (!use.errors.empty())
    throw Error(EINVAL, use.errors.front() + " The image is damaged, so it is not written to.");
  const std::shared_ptr<growing::Space> space = clusters.space(use);
  const uint64_t align = header.cluster() / kSector;
  const uint64_t len = round_up(bytes, header.cluster()) / kSector;
  uint64_t count = 1;
  if (const auto hole = space->take_in_hole(len, align, count)) co_return *hole* kSector;
  if (const auto end = space->take(len, align)) co_return *end* kSector;
  co_return space->next() * kSector;
}

}  // namespace

Task<> write_backing(Disk& top, Header& header, const BackingName& name, bool dry) {
  Header next = header;
  set_backing(next, name, 0);
  const std::string text = text_of(name);
  if (!text.empty()) next.backing_offset = co_await place_for(top, header, text.size());
  if (dry) co_return;
  if (!text.empty()) {
    const uint64_t end =
        round_up(next.backing_end(), std::max<uint64_t>(top.block_size(), kSector));
    if (end > top.size()) co_await top.resize(end);
    co_await write_any(top, next.backing_offset, std::as_bytes(std::span(text)));
    co_await top.flush();
  }
  Buffer head(top.block_size());
  co_await top.read_at(0, head);
  encode_backing(next, head);
  co_await top.write_at(0, head);
  co_await top.flush();
  header = next;
}

Task<> rebase(RebaseRequest request) {
  require_nameable(request);
  Header header = co_await read_header(*request.top);
  const BackingName name{request.file, request.format};
  co_await write_backing(*request.top, header, name, request.dry);
}

}  // namespace cowd::qcow
