// SPDX-License-Identifier: GPL-2.0-or-later
// Opens a store: everything that can be refused is refused before anything is
// written; the first write makes the store ours (owner.hh).
#include <exception>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/options.hh"
#include "formats/dscow/bitmap.hh"
#include "formats/dscow/headers.hh"
#include "formats/dscow/identity.hh"
#include "formats/dscow/image.hh"
#include "formats/dscow/operations.hh"
#include "formats/dscow/owner.hh"
#include "formats/dscow/regions.hh"

namespace cowd::dscow {
namespace {

Mode mode_of(Durability durability) {
  switch (durability) {
    case Durability::flush: return Mode::flush;
    case Durability::always: return Mode::always;
    case Durability::transient: break;
  }
  return Mode::transient;
}

// A store is persistent or transient for life: a persistent one would lose what it
// holds, a transient one has bits nowhere.
void require_mode(const std::string& store, Mode was, Mode wanted) {
  if (was == Mode::unused || (was == Mode::transient) == (wanted == Mode::transient)) return;
  if (was == Mode::transient)
    throw Error(
        ESTALE,
        store +
            " was attached as transient, so what it holds was worth nothing after its detach: "
            "attach it as transient again, or make it anew with 'cowctl create --force'.");
  throw Error(
      EINVAL,
      store +
          " was attached as persistent and may hold data that a transient disk would throw away: "
          "attach it as persistent, or make it anew with 'cowctl create --force'.");
}

// Once preserved (its guest was saved) a transient store is a persistent one, also for the cowd
// that comes after one which was killed before it could close or note that.
void take_as_preserved(OpenRequest& request, const Header& header) {
  if (request.reattach && request.durability == Durability::transient && header.mode == Mode::flush)
    request.durability = Durability::flush;
}

void require_writable(const OpenRequest& request) {
  if (request.top->read_only())
    throw Error(EROFS,
                request.top->name() +
                    " cannot be written to: make it writable, or attach the disk read-only.");
}

Task<> make_ours(const OpenRequest& request, Headers& headers, Mode mode) {
  Disk& top = *request.top;
  const Owner ours = make_owner(request);
  std::exception_ptr failure;
  try {
    co_await take_over(top, headers, ours, mode);
    // Of a transient store an earlier session's writes to the edges must go.
    if (mode == Mode::transient && !request.reattach)
      co_await fill_edges(top, request.base.get(), headers.current().geometry,
                          headers.current().base.size);
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return;
  co_await abandon(top, ours);
  std::rethrow_exception(failure);
}

Task<std::unique_ptr<Bits>> load_bits(const OpenRequest& request, const Geometry& geometry) {
  if (request.durability == Durability::transient) co_return std::make_unique<MemoryBits>();
  auto bits = std::make_unique<DiskBits>(*request.top, geometry);
  co_await bits->load();
  co_return bits;
}

}  // namespace

void require_room(const Disk& store, const Header& header) {
  const uint64_t needed = header.geometry.needed();
  if (store.size() < needed)
    throw Error(ENOSPC, store.name() + " is too small for the dscow store in it, of a disk of " +
                            human_size(header.geometry.size) + ": it has " +
                            std::to_string(store.size()) + " bytes and needs " +
                            std::to_string(needed) +
                            ". If it was cut off or copied in part, make it as large as it was.");
}

Task<std::unique_ptr<Image>> open(OpenRequest request) {
  Disk& top = *request.top;
  Headers headers = co_await Headers::read(top);
  const Header header = headers.current();
  require_room(top, header);
  take_as_preserved(request, header);
  const Mode mode = mode_of(request.durability);
  const bool read_only = request.read_only || unknown_read_only(header) != 0;
  if (read_only && mode == Mode::transient)
    throw Error(
        EINVAL,
        top.name() +
            " cannot be both transient and read-only: such a disk is its base, attach that.");
  require_mode(top.name(), header.mode, mode);
  const Claim claim = judge_owner(top.name(), header, request);
  // Served already, a base that has changed since must not stop the guests now.
  if (claim == Claim::take || !request.base)
    co_await require_base(top.name(), header, request.base.get());
  std::unique_ptr<Bits> bits = co_await load_bits(request, header.geometry);
  if (!read_only) {
    require_writable(request);
    if (claim == Claim::take || header.mode != mode) co_await make_ours(request, headers, mode);
  }
  co_return std::make_unique<StoreImage>(std::move(request), std::move(headers), std::move(bits),
                                         read_only);
}

}  // namespace cowd::dscow
