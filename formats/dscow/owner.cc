// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/dscow/owner.hh"

#include <random>

#include "cowd/core/error.hh"

namespace cowd::dscow {
namespace {

uint64_t make_nonce() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

void require_ids(const OpenRequest& request) {
  for (const std::string* id : {&request.host_id, &request.boot_id})
    if (id->empty() || id->size() >= kIdSpan)
      throw Error(EINVAL, "A dscow store is attached in the name of a host: /etc/machine-id and "
                          "/proc/sys/kernel/random/boot_id must give 1 to 63 characters each.");
}

}  // namespace

Claim judge_owner(const std::string& store, const Header& header, const OpenRequest& request) {
  const Owner& owner = header.owner;
  if (owner.host.empty()) return Claim::take;
  if (owner.host != request.host_id)
    throw Error(EBUSY, store + " is attached by the host with the machine id " + owner.host + " (epoch " +
                           std::to_string(header.epoch) +
                           "): detach it there. If that host crashed, attach and detach it once there.");
  if (owner.boot != request.boot_id) return Claim::take;
  if (request.reattach) return Claim::keep;
  throw Error(EBUSY, store + " is attached on this host already: 'cowctl list' tells as what; a store can be attached once.");
}

Task<> take_over(Disk& disk, Headers& headers, const OpenRequest& request, Mode mode) {
  require_ids(request);
  Header next = headers.current();
  next.owner = {request.host_id, request.boot_id, make_nonce()};
  next.epoch++;
  next.mode = mode;
  next.clean = false;
  co_await headers.write(disk, next);
  const Headers again = co_await Headers::read(disk);
  if (again.current() != headers.current())
    throw Error(EBUSY, disk.name() + " was attached by the host with the machine id " + again.current().owner.host +
                           " at the same moment, and is left to it.");
}

Task<> release(Disk& disk, Headers& headers) {
  const Headers found = co_await Headers::read(disk);
  if (found.current() != headers.current())
    throw Error(ESTALE, disk.name() + " has been taken over by the host with the machine id " +
                            found.current().owner.host + " (epoch " + std::to_string(found.current().epoch) +
                            ") while it was attached here: its header is left as it is.");
  Header next = headers.current();
  next.owner = {};
  next.clean = true;
  co_await headers.write(disk, next);
}

}  // namespace cowd::dscow
