// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/dscow/owner.hh"

#include <random>
#include <utility>

#include "cowd/core/error.hh"

namespace cowd::dscow {
namespace {

uint64_t make_nonce() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

// The copy that is left would say that we own the store, and count again if
// the first were damaged: so both are written.
Task<> write_released(Disk& disk, Headers& headers) {
  Header next = headers.current();
  next.owner = {};
  next.clean = true;
  co_await headers.write(disk, next);
  co_await headers.write(disk, next);
}

}  // namespace

Claim judge_owner(const std::string& store, const Header& header, const OpenRequest& request) {
  const Owner& owner = header.owner;
  if (owner.host.empty()) return Claim::take;
  if (owner.host != request.host_id)
    throw Error(EBUSY,
                store + " is attached by the host with the machine id " + owner.host + " (epoch " +
                    std::to_string(header.epoch) +
                    "): detach it there. If that host crashed, attach and detach it once there.");
  if (owner.boot != request.boot_id) return Claim::take;
  if (request.reattach) return Claim::keep;
  throw Error(EBUSY, store +
                         " is attached on this host already: 'cowctl list' tells as what; a store "
                         "can be attached once.");
}

Owner make_owner(const OpenRequest& request) {
  for (const std::string* id : {&request.host_id, &request.boot_id})
    if (id->empty() || id->size() >= kIdSpan)
      throw Error(EINVAL,
                  "A dscow store is attached in the name of a host: /etc/machine-id and "
                  "/proc/sys/kernel/random/boot_id must give 1 to 63 characters each.");
  return {request.host_id, request.boot_id, make_nonce()};
}

Task<> take_over(Disk& disk, Headers& headers, const Owner& ours, Mode mode) {
  Header next = headers.current();
  next.owner = ours;
  next.epoch++;
  next.mode = mode;
  next.clean = false;
  co_await headers.write(disk, next);
  const Headers again = co_await Headers::read(disk);
  if (again.current() != headers.current())
    throw Error(EBUSY, disk.name() + " was attached by the host with the machine id " +
                           again.current().owner.host + " at the same moment, and is left to it.");
}

Task<> abandon(Disk& disk, const Owner& ours) {
  try {
    Headers found = co_await Headers::read(disk);
    if (found.current().owner == ours) co_await write_released(disk, found);
  } catch (const Error&) {
    // What made us give up is the failure to tell.
  }
}

// At our epoch nobody but us can have released it: a close that failed is repeated.
Task<> release(Disk& disk, Headers& headers) {
  const Owner ours = headers.current().owner;
  Headers found = co_await Headers::read(disk);
  const Header& header = found.current();
  if (header.epoch != headers.current().epoch ||
      !(header.owner == ours || header.owner.host.empty()))
    throw Error(ESTALE, disk.name() + " has been taken over by the host with the machine id " +
                            header.owner.host + " (epoch " + std::to_string(header.epoch) +
                            ") while it was attached here: its header is left as it is.");
  headers = std::move(found);
  co_await write_released(disk, headers);
}

}  // namespace cowd::dscow
