// SPDX-License-Identifier: GPL-2.0-or-later
// Empties an image whose base has all it holds ('cowctl commit'):
//   1. the first level becomes zeroes; flush. Some entries before others: what they named is in
//      the base too
//   2. the backing file's name moves to the front, if it is behind (rebase.cc)
//   3. the file ends behind both
#include <algorithm>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/qcow/qcow.hh"

namespace cowd::qcow {
namespace {

constexpr uint64_t kZeroesAtOnce = 1 << 20;

// A base is written to only in a format that somebody has said.
void require_emptiable(const Disk& top, const BackingName& name) {
  const auto refuse = [&](int code, const std::string& what) {
    throw Error(code, top.name() + what);
  };
  if (top.read_only()) refuse(EROFS, " cannot be written to: make it writable.");
  if (name.file.empty()) refuse(EINVAL, " names no backing file that it could be committed to.");
  if (name.format.empty())
    refuse(EINVAL, " does not say in which format " + name.file +
                       " is, so nothing is written there: say it with 'cowctl rebase -u -b " +
                       name.file + " -F FORMAT' first.");
}

Task<> zero_first_level(Disk& top, const Header& header) {
  const uint64_t bytes = header.tables() * 8;
  const Buffer zeroes(std::min(bytes, kZeroesAtOnce));
  for (uint64_t at = 0; at < bytes; at += zeroes.size()) {
    const auto part =
        std::span<const std::byte>(zeroes).first(std::min<uint64_t>(zeroes.size(), bytes - at));
    co_await write_any(top, header.first_level + at, part);
  }
  co_await top.flush();
}

}  // namespace

Task<> begin_commit(CommitRequest request) {
  const Header header = co_await read_header(*request.top);
  const BackingName name = co_await read_backing_name(*request.top, header);
  require_emptiable(*request.top, name);
}

Task<> end_commit(CommitRequest request) {
  if (!request.empty) co_return;
  Disk& top = *request.top;
  Header header = co_await read_header(top);
  const BackingName name = co_await read_backing_name(top, header);
  require_emptiable(top, name);
  co_await zero_first_level(top, header);
  const uint64_t behind = round_up(header.first_level_end(), header.cluster());
  if (header.backing_offset > behind) co_await write_backing(top, header, name, false);
  const uint64_t end = round_up(std::max(header.backing_end(), behind), header.cluster());
  if (end < top.size()) co_await top.resize(round_up(end, top.block_size()));
  co_await top.flush();
}

}  // namespace cowd::qcow
