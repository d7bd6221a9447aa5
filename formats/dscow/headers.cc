// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/dscow/headers.hh"

#include <algorithm>
#include <span>

#include "cowd/core/error.hh"
#include "formats/common/bytes.hh"

namespace cowd::dscow {
namespace {

// Version 1 as it stands has no features.
constexpr uint64_t kKnownIncompatible = 0;
constexpr uint64_t kKnownReadOnly = 0;

[[noreturn]] void refuse_both(const Disk& disk, const std::array<Decoded, 2>& copies) {
  if (!copies[0].magic && !copies[1].magic)
    throw Error(
        EMEDIUMTYPE,
        disk.name() +
            " is not a dscow store: name another format, or make one there with 'cowctl create'.");
  throw Error(EUCLEAN,
              disk.name() + " is a dscow store without a good header (copy 0: " +
                  copies[0].problem + "; copy 1: " + copies[1].problem +
                  "); what it held must come from a backup, there is nothing to repair it from.");
}

void refuse_unknown(const Disk& disk, const Decoded& decoded) {
  if (decoded.version != kVersion)
    throw Error(
        EOPNOTSUPP,
        disk.name() + " is a dscow store of version " + std::to_string(decoded.version) +
            "; this program knows version 1 only: use the one that made it, or a newer one.");
  if (const uint64_t bits = unknown_incompatible(decoded.header))
    throw Error(EOPNOTSUPP,
                disk.name() + " uses features of dscow that this program does not know (bits " +
                    std::to_string(bits) + "): use the program that made it, or a newer one.");
}

}  // namespace

uint64_t unknown_incompatible(const Header& header) {
  return header.incompatible & ~kKnownIncompatible;
}
uint64_t unknown_read_only(const Header& header) { return header.read_only & ~kKnownReadOnly; }

Task<Headers> Headers::read(Disk& disk) {
  Buffer blocks(2 * kBlock);
  if (disk.size() < blocks.size())
    throw Error(EMEDIUMTYPE, disk.name() + " is too small to be a dscow store: it has " +
                                 std::to_string(disk.size()) +
                                 " bytes, and the headers alone take 8192. Is it the right one?");
  co_await disk.read_at(0, blocks);
  const std::span<const std::byte> bytes(blocks);
  const std::array<Decoded, 2> copies{decode(bytes.first(kBlock)), decode(bytes.last(kBlock))};
  const bool good[2] = {copies[0].problem.empty(), copies[1].problem.empty()};
  if (!good[0] && !good[1]) refuse_both(disk, copies);
  Headers headers;
  headers.copy_ = good[1] && (!good[0] || copies[1].header.sequence > copies[0].header.sequence);
  headers.current_ = copies[headers.copy_].header;
  const auto begin = blocks.begin() + static_cast<ptrdiff_t>(headers.copy_ * kBlock);
  headers.block_.assign(begin, begin + kBlock);
  headers.problems_ = {copies[0].problem, copies[1].problem};
  refuse_unknown(disk, copies[headers.copy_]);
  co_return headers;
}

Task<> Headers::write(Disk& disk, Header next) {
  next.sequence = current_.sequence + 1;
  Buffer block = block_;
  encode(next, block);
  const size_t copy = 1 - copy_;
  co_await disk.write_at(copy * kBlock, block);
  co_await disk.flush();
  current_ = next;
  block_ = block;
  copy_ = copy;
  problems_[copy].clear();
}

Task<> write_both(Disk& disk, Header header) {
  header.sequence = 1;
  Buffer blocks(2 * kBlock);
  encode(header, std::span<std::byte>(blocks).first(kBlock));
  encode(header, std::span<std::byte>(blocks).last(kBlock));
  co_await disk.write_at(0, blocks);
  co_await disk.flush();
}

}  // namespace cowd::dscow
