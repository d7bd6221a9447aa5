// SPDX-License-Identifier: GPL-2.0-or-later
// Empties an image whose base has all it holds ('cowctl commit').
//
// Order; between any two steps the disk reads the same, and a crash leaves leaks and no errors:
//   1. the autoclear bits go, as before any other writing; flush
//   2. the L1 table becomes zeroes; flush. Some entries before others: what they named is in
//      the base too. From here on only the header, the L1 table and the refcounts are in use
//   3. new refcounts, of these alone, are written where nothing of the old ones is; flush
//   4. the header names them, and is neither dirty any more; flush
//   5. the file ends where they end
// The old refcounts stay as they are until 4: leaks if it comes to an end before.
#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/bytes.hh"
#include "formats/qcow2/claims.hh"
#include "formats/qcow2/operations.hh"

namespace cowd::qcow2 {
namespace {

constexpr uint64_t kZeroesAtOnce = 1 << 20;

void require_emptiable(const Disk& top, const Header& header) {
  const auto refuse = [&](int code, const std::string& what) {
    throw Error(code, top.name() + what);
  };
  if (top.read_only()) refuse(EROFS, " cannot be written to: make it writable.");
  if (header.backing_name.empty())
    refuse(EINVAL, " names no backing file that it could be committed to.");
  if (header.incompatible & kCorrupt)
    refuse(EROFS,
           ": a program has marked the image as damaged, so it is not committed: run 'cowctl "
           "check --repair' first.");
  if (header.snapshots)
    refuse(EOPNOTSUPP, " has " + std::to_string(header.snapshots) +
                           " internal snapshots, which show the backing file too and would "
                           "change with it: delete them first ('qemu-img snapshot -d').");
}

Task<> set_header(Disk& top, Header& header, const Header& next) {
  co_await write_header(top, next);
  co_await top.flush();
  header = next;
}

Task<> zero_l1(Disk& top, const Header& header) {
  const uint64_t bytes = round_up(uint64_t{header.l1_entries} * 8, kSector);
  const Buffer zeroes(std::min(bytes, kZeroesAtOnce));
  for (uint64_t at = 0; at < bytes; at += zeroes.size()) {
    const auto part =
        std::span<const std::byte>(zeroes).first(std::min<uint64_t>(zeroes.size(), bytes - at));
    co_await write_any(top, header.l1_offset + at, part);
  }
  co_await top.flush();
}

uint64_t clusters_for(const Header& header, uint64_t bytes) {
  return (bytes + header.cluster() - 1) >> header.cluster_bits;
}

// What stays: the header and the L1 table.
Claims kept(const Header& header) {
  Claims used;
  used.add(0, 1);
  used.add(header.l1_offset >> header.cluster_bits,
           clusters_for(header, uint64_t{header.l1_entries} * 8));
  return used;
}

// And where the old refcounts are, which count until the header names others.
Task<Claims> taken(Disk& top, const Header& header) {
  Claims used = kept(header);
  const uint64_t bytes = uint64_t{header.refcount_table_clusters} << header.cluster_bits;
  used.add(header.refcount_table_offset >> header.cluster_bits, header.refcount_table_clusters);
  const std::vector<uint64_t> table =
      co_await read_l1(top, header.refcount_table_offset, bytes / 8);
  for (const uint64_t block : table)
    if (block & kOffsetMask) used.add((block & kOffsetMask) >> header.cluster_bits, 1);
  co_return used;
}

// The first of so many free clusters in a row.
uint64_t gap(const Claims& used, uint64_t count) {
  uint64_t at = 0;
  for (;;) {
    at = used.end_of(at);
    const uint64_t next = used.next(at);
    if (next - at >= count) return at;
    at = next;
  }
}

// Table and blocks, one after the other.
struct Plan {
  uint64_t first = 0;  // cluster
  uint64_t tables = 0;
  Claims used;  // everything that is to be counted
  std::map<uint64_t, Buffer> blocks;
  uint64_t needed() const { return tables + blocks.size(); }
};

Buffer& block_of(Plan& plan, const Header& header, uint64_t cluster) {
  Buffer& block = plan.blocks[cluster / header.refcounts_per_block()];
  if (block.empty()) block.resize(header.cluster());
  return block;
}

// With `count` clusters from `first` on for both.
Plan plan_at(const Header& header, uint64_t first, uint64_t count) {
  Plan plan;
  plan.first = first;
  plan.used = kept(header);
  plan.used.add(first, count);
  uint64_t last = 0;
  for (uint64_t at = plan.used.next(0); at != UINT64_MAX; at = plan.used.next(at + 1)) {
    last = at / header.refcounts_per_block();
    set_refcount(block_of(plan, header, at), at % header.refcounts_per_block(),
                 header.refcount_order, 1);
  }
  plan.tables = clusters_for(header, (last + 1) * 8);
  return plan;
}

// As many clusters as what is used needs, themselves included. More of them need more; fewer
// at the same place never do, so that the second loop ends.
Plan plan_refcounts(const Header& header, const Claims& occupied) {
  uint64_t count = 2;
  Plan plan = plan_at(header, gap(occupied, count), count);
  while (plan.needed() > count) {
    count = plan.needed();
    plan = plan_at(header, gap(occupied, count), count);
  }
  while (plan.needed() < count) {
    count = plan.needed();
    plan = plan_at(header, plan.first, count);
  }
  return plan;
}

Task<> write_refcounts(Disk& top, const Header& header, const Plan& plan) {
  Buffer table(plan.tables << header.cluster_bits);
  uint64_t at = (plan.first + plan.tables) << header.cluster_bits;
  const uint64_t end = at + (plan.blocks.size() << header.cluster_bits);
  if (end > top.size()) co_await top.resize(end);
  for (const auto& [index, block] : plan.blocks) {
    store_be<uint64_t>(table, index * 8, at);
    co_await write_any(top, at, block);
    at += header.cluster();
  }
  co_await write_any(top, plan.first << header.cluster_bits, table);
  co_await top.flush();
}

Task<> renew_refcounts(Disk& top, Header& header) {
  const Claims occupied = co_await taken(top, header);
  const Plan plan = plan_refcounts(header, occupied);
  co_await write_refcounts(top, header, plan);
  Header next = header;
  next.refcount_table_offset = plan.first << header.cluster_bits;
  next.refcount_table_clusters = static_cast<uint32_t>(plan.tables);
  next.incompatible &= ~kDirty;
  co_await set_header(top, header, next);
  uint64_t end = 0;
  for (uint64_t at = plan.used.next(0); at != UINT64_MAX; at = plan.used.next(end))
    end = plan.used.end_of(at);
  if (end << header.cluster_bits < top.size()) co_await top.resize(end << header.cluster_bits);
  co_await top.flush();
}

}  // namespace

Task<> begin_commit(CommitRequest request) {
  const Header header = co_await read_header(*request.top);
  require_emptiable(*request.top, header);
}

Task<> end_commit(CommitRequest request) {
  if (!request.empty) co_return;
  Disk& top = *request.top;
  Header header = co_await read_header(top);
  require_emptiable(top, header);
  Header cleared = header;
  cleared.autoclear &= kRawExternal;
  if (header.autoclear != cleared.autoclear) co_await set_header(top, header, cleared);
  co_await zero_l1(top, header);
  co_await renew_refcounts(top, header);
}

}  // namespace cowd::qcow2
