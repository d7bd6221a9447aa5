// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/growing/making.hh"

#include <algorithm>
#include <span>
#include <vector>

#include "cowd/core/error.hh"
#include "formats/common/bytes.hh"
#include "formats/common/options.hh"
#include "formats/common/signatures.hh"

namespace cowd::growing {
namespace {

constexpr size_t kZeroesAtOnce = 256 * 1024;

}  // namespace

uint64_t wanted_size(CreateRequest& request) {
  const std::string& name = request.top->name();
  if (request.base)
    throw Error(EINVAL, "An image in " + name + " with a base is not made here, and " +
                            request.base->name() + " is given as one: leave it out.");
  const uint64_t option = take_size(request.options, "size", 0);
  if (option != 0 && request.size != 0 && option != request.size)
    throw Error(EINVAL, "Two sizes are given for the disk in " + name + ": " +
                            human_size(request.size) + " and " + human_size(option) +
                            ". Give one.");
  const uint64_t size = std::max(option, request.size);
  if (size == 0)
    throw Error(EINVAL, "The size of the disk in " + name + " is not given: give one with size=.");
  if (size % 512 != 0)
    throw Error(EINVAL, "The disk in " + name + " cannot have " + std::to_string(size) +
                            " bytes: give a multiple of 512.");
  return size;
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

Task<> clear_top(const CreateRequest& request, const std::string& what) {
  Disk& top = *request.top;
  if (top.read_only())
    throw Error(EROFS,
                top.name() + " is read-only: it must be writable to make " + what + " there.");
  Buffer head(std::min<uint64_t>(kSignatureSpan, round_down(top.size(), top.block_size())));
  std::vector<Signature> found;
  if (!head.empty()) {
    co_await top.read_at(0, head);
    found = find_signatures(head);
  }
  if (!found.empty() && !request.force)
    throw Error(EEXIST, top.name() + " holds " + found.front().what + ": to lose that and make " +
                            what + " there, say --force.");
  co_await top.resize(0);
  // Still there: a device.
  for (const Signature& signature : found) {
    const uint64_t at = round_down(signature.offset, 4096);
    if (at + 4096 <= top.size()) co_await write_zeroes(top, at, 4096);
  }
  if (top.size() != 0) co_await top.flush();
}

Task<> make_room(Disk& top, uint64_t bytes) {
  if (top.size() < bytes) co_await top.resize(round_up(bytes, top.block_size()));
}

}  // namespace cowd::growing
