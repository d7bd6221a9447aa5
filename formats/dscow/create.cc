// SPDX-License-Identifier: GPL-2.0-or-later
// Makes a store: no bit of it is written but headers, the top and edges.
//
// Order, so that a crash leaves no store or a whole one, never an old header over a
// new bitmap:
//   1. zeroes over both headers and over whatever else would be recognised; flush
//   2. the top, all zero; the edges; flush
//   3. both headers; flush
#include <algorithm>
#include <span>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/bytes.hh"
#include "formats/common/options.hh"
#include "formats/common/signatures.hh"
#include "formats/dscow/headers.hh"
#include "formats/dscow/identity.hh"
#include "formats/dscow/operations.hh"
#include "formats/dscow/regions.hh"

namespace cowd::dscow {
namespace {

constexpr size_t kZeroesAtOnce = 256 * 1024;

uint64_t disk_size(CreateRequest& request) {
  const uint64_t option = take_size(request.options, "size", 0);
  if (option != 0 && request.size != 0 && option != request.size)
    throw Error(EINVAL, "Two sizes are given for the disk in " + request.top->name() + ": " +
                            human_size(request.size) + " and " + human_size(option) +
                            ". Give one.");
  if (const uint64_t size = std::max(option, request.size)) return size;
  if (!request.base)
    throw Error(EINVAL,
                "The size of the disk in " + request.top->name() +
                    " is not given, and there is no base to take it from: give one with size=.");
  return request.base->size();
}

Uuid wanted_uuid(CreateRequest& request) {
  const auto option = request.options.extract("uuid");
  if (option.empty()) return {};
  const auto uuid = parse_uuid(option.mapped());
  if (!uuid)
    throw Error(EINVAL, "uuid=" + option.mapped() +
                            " is no UUID: write 32 hexadecimal digits as "
                            "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx.");
  return *uuid;
}

Geometry geometry_for(uint64_t size, uint64_t granule) {
  const std::string where = "A dscow store of " + human_size(size) + " with a granule of " +
                            human_size(granule) + " cannot be: ";
  if (granule < kMinGranule || granule > kMaxGranule)
    throw Error(EINVAL, where + "the granule must be from 4 KiB to 1 MiB.");
  const Geometry unplaced{size, static_cast<uint32_t>(granule), 0, 0, 0};
  // Sizes first: plan() may count on them.
  if (size == 0 || size % 512 != 0 || (granule & (granule - 1)) != 0 ||
      size / granule >= kMaxGranules)
    throw Error(EINVAL, where + problem_with(unplaced) + ".");
  return plan(size, unplaced.granule);
}

Geometry wanted_geometry(CreateRequest& request) {
  const uint64_t granule = take_size(request.options, "granule", kMinGranule);
  const uint64_t size = disk_size(request);
  refuse_others(request.options, "dscow");
  return geometry_for(size, granule);
}

void refuse_top(const CreateRequest& request, const Geometry& geometry) {
  const Disk& top = *request.top;
  if (top.read_only())
    throw Error(EROFS, top.name() + " is read-only: a dscow store must be writable.");
  if (request.base && (request.base == request.top || request.base->name() == top.name()))
    throw Error(EINVAL, top.name() + " is given as store and as base: they must be two.");
  if (top.size() < geometry.needed())
    throw Error(ENOSPC, top.name() + " is too small for a dscow store of a disk of " +
                            human_size(geometry.size) + ": it has " + std::to_string(top.size()) +
                            " bytes and needs " + std::to_string(geometry.needed()) +
                            ". Make it larger, or the disk smaller.");
}

Task<> write_zeroes(Disk& disk, uint64_t offset, uint64_t length) {
  const Buffer zeroes(std::min<uint64_t>(length, kZeroesAtOnce));
  while (length > 0) {
    const uint64_t part = std::min<uint64_t>(length, zeroes.size());
    co_await disk.write_at(offset, std::span<const std::byte>(zeroes).first(part));
    offset += part;
    length -= part;
  }
}

// Refuses a disk that holds something, or, with force, makes it unrecognisable.
Task<> clear_top(const CreateRequest& request) {
  Disk& top = *request.top;
  const std::vector<Signature> found = co_await find_signatures(top);
  if (!found.empty() && !request.force)
    throw Error(EEXIST, top.name() + " holds " + found.front().what +
                            ": to lose that and make a dscow store there, say --force.");
  for (const Signature& signature : found)
    co_await write_zeroes(top, round_down(signature.offset, kBlock), kBlock);
  co_await write_zeroes(top, 0, 2 * kBlock);
  co_await top.flush();
}

Task<Header> make_header(const CreateRequest& request, const Geometry& geometry) {
  Header header;
  header.geometry = geometry;
  if (request.base) {
    if (request.base->size() == 0)
      throw Error(EINVAL, request.base->name() + " has no bytes: it cannot be a base.");
    if (request.base->name().size() >= kLocatorSpan)
      throw Error(ENAMETOOLONG, "The name of the base, " + request.base->name() +
                                    ", is longer than the 2047 bytes a store can keep.");
    header.base = co_await identify(*request.base, request.base->size());
    header.base_locator = request.base->name();
  }
  co_return header;
}

}  // namespace

uint64_t store_size(uint64_t virtual_bytes, const Options& options) {
  Options rest = options;
  const uint64_t granule = take_size(rest, "granule", kMinGranule);
  return geometry_for(take_size(rest, "size", virtual_bytes), granule).needed();
}

Task<> create(CreateRequest request) {
  const Uuid uuid = wanted_uuid(request);
  const Geometry geometry = wanted_geometry(request);
  refuse_top(request, geometry);
  Header header = co_await make_header(request, geometry);
  header.store = uuid;
  co_await clear_top(request);
  co_await write_zeroes(*request.top, geometry.top_offset, geometry.top_bytes());
  co_await fill_edges(*request.top, request.base.get(), geometry, header.base.size);
  co_await request.top->flush();
  co_await write_both(*request.top, header);
  if (request.progress) request.progress(1, 1);
}

}  // namespace cowd::dscow
