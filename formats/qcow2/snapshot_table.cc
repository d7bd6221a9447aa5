// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/qcow2/snapshot_table.hh"

#include <algorithm>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/bytes.hh"
#include "formats/qcow2/operations.hh"

namespace cowd::qcow2 {
namespace {

constexpr uint64_t kFixed = 40;
constexpr uint64_t kKnownExtra = 24;
constexpr uint64_t kAtOnce = 64 << 10;

[[noreturn]] void bad(const Disk& disk, const std::string& what) {
  throw Error(EIO, disk.name() + ": " + what +
                       ". Restore the image from a backup, or convert it with 'qemu-img convert'.");
}

// The table as far as it was asked for.
class Window {
 public:
  Window(Disk& disk, uint64_t offset) : disk_(disk), offset_(offset) {}
  Task<> reach(uint64_t end) {
    if (end <= bytes_.size()) co_return;
    if (end > kMaxSnapshotTableBytes) bad(disk_, "the snapshot table is longer than 64 MiB");
    const size_t had = bytes_.size();
    bytes_.resize(round_up(end, kAtOnce));
    const std::span<std::byte> more = std::span<std::byte>(bytes_).subspan(had);
    co_await read_any(disk_, offset_ + had, more);
  }
  std::span<const std::byte> at(uint64_t offset) const {
    return std::span<const std::byte>(bytes_).subspan(offset);
  }

 private:
  Disk& disk_;
  const uint64_t offset_;
  Buffer bytes_;
};

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void decode_extra(SnapshotEntry& entry, std::span<const std::byte> extra) {
  if (extra.size() >= 8) entry.what.vm_state_bytes = load_be<uint64_t>(extra, 0);
  entry.has_size = extra.size() >= 16;
  if (entry.has_size) entry.what.disk_bytes = load_be<uint64_t>(extra, 8);
  if (extra.size() >= 24) entry.what.icount = load_be<uint64_t>(extra, 16);
  if (extra.size() > kKnownExtra) entry.unknown.assign(extra.begin() + kKnownExtra, extra.end());
}

// `fixed`: the entry from its beginning on, all of it.
SnapshotEntry decode(std::span<const std::byte> fixed, uint64_t disk_bytes) {
  const auto id_size = load_be<uint16_t>(fixed, 12);
  const auto name_size = load_be<uint16_t>(fixed, 14);
  const auto extra_size = load_be<uint32_t>(fixed, 36);
  SnapshotEntry entry;
  entry.l1_offset = load_be<uint64_t>(fixed, 0);
  entry.l1_entries = load_be<uint32_t>(fixed, 8);
  entry.what.date_sec = load_be<uint32_t>(fixed, 16);
  entry.what.date_nsec = load_be<uint32_t>(fixed, 20);
  entry.what.vm_clock_nsec = load_be<uint64_t>(fixed, 24);
  entry.what.vm_state_bytes = load_be<uint32_t>(fixed, 32);
  entry.what.disk_bytes = disk_bytes;
  decode_extra(entry, fixed.subspan(kFixed, extra_size));
  entry.what.id = text_of(fixed.subspan(kFixed + extra_size, id_size));
  entry.what.name = text_of(fixed.subspan(kFixed + extra_size + id_size, name_size));
  return entry;
}

}  // namespace

Task<SnapshotTable> read_snapshots(Disk& disk, const Header& header) {
  SnapshotTable table;
  Window window(disk, header.snapshots_offset);
  for (uint32_t i = 0; i < header.snapshots; i++) {
    const std::string which = "snapshot " + std::to_string(i + 1);
    co_await window.reach(table.bytes + kFixed);
    const std::span<const std::byte> fixed = window.at(table.bytes);
    const auto extra = load_be<uint32_t>(fixed, 36);
    if (extra > kMaxSnapshotExtra)
      bad(disk, which + " has " + std::to_string(extra) + " bytes of extra data; 1024 is the most");
    const uint64_t length =
        kFixed + extra + load_be<uint16_t>(fixed, 12) + load_be<uint16_t>(fixed, 14);
    co_await window.reach(table.bytes + length);
    SnapshotEntry entry = decode(window.at(table.bytes), header.size);
    if (entry.what.disk_bytes > kMaxVirtualSize || entry.what.disk_bytes % kSector != 0)
      bad(disk, which + " says that the disk had " + std::to_string(entry.what.disk_bytes) +
                    " bytes, which it cannot have had");
    table.entries.push_back(std::move(entry));
    table.bytes += round_up(length, 8);
  }
  co_return table;
}

std::vector<std::byte> encode(std::span<const SnapshotEntry> entries, const std::string& name) {
  std::vector<std::byte> bytes;
  const auto append = [&](std::span<const std::byte> more) {
    bytes.insert(bytes.end(), more.begin(), more.end());
  };
  for (const SnapshotEntry& entry : entries) {
    const Snapshot& what = entry.what;
    std::vector<std::byte> fixed(kFixed + kKnownExtra);
    store_be<uint64_t>(fixed, 0, entry.l1_offset);
    store_be<uint32_t>(fixed, 8, entry.l1_entries);
    store_be<uint16_t>(fixed, 12, static_cast<uint16_t>(what.id.size()));
    store_be<uint16_t>(fixed, 14, static_cast<uint16_t>(what.name.size()));
    store_be<uint32_t>(fixed, 16, static_cast<uint32_t>(what.date_sec));
    store_be<uint32_t>(fixed, 20, what.date_nsec);
    store_be<uint64_t>(fixed, 24, what.vm_clock_nsec);
    // Who does not know the extra data shall not take a part for all of it.
    const bool fits = what.vm_state_bytes <= UINT32_MAX;
    store_be<uint32_t>(fixed, 32, fits ? static_cast<uint32_t>(what.vm_state_bytes) : 0);
    store_be<uint32_t>(fixed, 36, static_cast<uint32_t>(kKnownExtra + entry.unknown.size()));
    store_be<uint64_t>(fixed, 40, what.vm_state_bytes);
    store_be<uint64_t>(fixed, 48, what.disk_bytes);
    store_be<uint64_t>(fixed, 56, what.icount);
    append(fixed);
    append(entry.unknown);
    append(std::as_bytes(std::span(what.id)));
    append(std::as_bytes(std::span(what.name)));
    bytes.resize(round_up(bytes.size(), 8));
  }
  if (entries.size() > kMaxSnapshots || bytes.size() > kMaxSnapshotTableBytes)
    throw Error(E2BIG, name +
                           ": there would be more than 65536 snapshots, or their table would be "
                           "longer than 64 MiB. Delete some first.");
  return bytes;
}

Task<std::vector<uint64_t>> read_l1_of(Disk& disk, const Header& header,
                                       const SnapshotEntry& entry) {
  const uint64_t bytes = uint64_t{entry.l1_entries} * 8;
  if (bytes > kMaxL1Bytes || entry.l1_offset % header.cluster() != 0 ||
      (bytes && (entry.l1_offset == 0 || entry.l1_offset + bytes > disk.size())))
    bad(disk, "the L1 table of snapshot " + entry.what.name + " is not where it can be");
  co_return co_await read_l1(disk, entry.l1_offset, entry.l1_entries);
}

}  // namespace cowd::qcow2
