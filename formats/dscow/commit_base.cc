// SPDX-License-Identifier: GPL-2.0-or-later
// What 'cowctl commit' does to a store whose base gets what it holds.
//
// The store knows its base by checksums, which a commit changes one after the other. So:
//   1. begin_commit: the header bears that its base is being changed (kBaseChanges); flush.
//      Until it does not any more the base is known by its size alone
//   2. the base gets what the store holds
//   3. end_commit: the header has the base as it is now, perhaps larger; flush. What was beyond
//      its end, and zeroes or an edge, is the base's from here on
//   4. the top of the bitmap becomes zeroes; flush. What is torn of it leaves some pages in the
//      store, which the base has too
//   5. the mark goes; flush
// A crash between any two leaves a store over its base, to be attached or committed again.
#include <algorithm>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/bytes.hh"
#include "formats/dscow/headers.hh"
#include "formats/dscow/identity.hh"
#include "formats/dscow/operations.hh"

namespace cowd::dscow {
namespace {

constexpr uint64_t kZeroesAtOnce = 256 * 1024;

void require_ours(const CommitRequest& request, const Header& header) {
  const std::string& store = request.top->name();
  if (request.top->read_only())
    throw Error(EROFS, store + " cannot be written to: make it writable.");
  if (!request.base)
    throw Error(EINVAL, store +
                            " is given without a base, so there is nothing to commit it to: write "
                            "dscow:TOP:BASE.");
  if (unknown_read_only(header))
    throw Error(EOPNOTSUPP, store +
                                " uses features of dscow with which this program only reads it: "
                                "use the one that made it, or a newer one.");
  if (!header.owner.host.empty())
    throw Error(EBUSY, store + " is attached by the host with the machine id " + header.owner.host +
                           ", or was when that crashed: detach it there (after a crash, attach and "
                           "detach it) before it is committed.");
}

// Both copies: the other one would refuse the base if this one were damaged.
Task<> write_twice(Disk& disk, Headers& headers, const Header& next) {
  co_await headers.write(disk, next);
  co_await headers.write(disk, next);
}

Task<> clear_top(Disk& store, const Geometry& geometry) {
  const Buffer zeroes(std::min(geometry.top_bytes(), kZeroesAtOnce));
  for (uint64_t at = 0; at < geometry.top_bytes(); at += zeroes.size()) {
    const uint64_t part = std::min<uint64_t>(zeroes.size(), geometry.top_bytes() - at);
    co_await store.write_at(geometry.top_offset + at,
                            std::span<const std::byte>(zeroes).first(part));
  }
  co_await store.flush();
}

}  // namespace

Task<> begin_commit(CommitRequest request) {
  Headers headers = co_await Headers::read(*request.top);
  require_ours(request, headers.current());
  co_await require_base(request.top->name(), headers.current(), request.base.get());
  if (headers.current().compatible & kBaseChanges) co_return;
  Header next = headers.current();
  next.compatible |= kBaseChanges;
  co_await write_twice(*request.top, headers, next);
}

Task<> end_commit(CommitRequest request) {
  Headers headers = co_await Headers::read(*request.top);
  require_ours(request, headers.current());
  Header next = headers.current();
  next.base = co_await identify(*request.base, request.base->size());
  co_await write_twice(*request.top, headers, next);
  if (request.empty) co_await clear_top(*request.top, next.geometry);
  next = headers.current();
  next.compatible &= ~kBaseChanges;
  co_await write_twice(*request.top, headers, next);
}

}  // namespace cowd::dscow
