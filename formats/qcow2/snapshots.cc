// SPDX-License-Identifier: GPL-2.0-or-later
// Snapshots of an image that nobody serves: listed, made, gone back to, deleted.
//
//            L1 table of the disk     what names clusters     snapshot table
//   create   a copy                   the disk's once more    one entry more, at its end
//   apply    that of the snapshot     the snapshot's once     as it was
//                                     more, the disk's less
//   delete   a copy                   the snapshot's less     one entry less
//
// and then the COPIED flags of the disk's tables as the refcounts have them. All of it takes the
// place of what was there at once: shadow.hh.
#include <algorithm>
#include <charconv>
#include <ctime>
#include <exception>
#include <functional>
#include <string>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/qcow2/operations.hh"
#include "formats/qcow2/shadow.hh"
#include "formats/qcow2/snapshot_table.hh"

namespace cowd::qcow2 {
namespace {

uint64_t tables_in(const std::vector<uint64_t>& l1) {
  return l1.size() - static_cast<uint64_t>(std::ranges::count(l1, uint64_t{0}));
}

uint64_t clusters_for(const Header& header, uint64_t bytes) {
  return (bytes + header.cluster() - 1) >> header.cluster_bits;
}

// What every one of them has at hand.
class Change {
 public:
  Change(SnapshotRequest& request, const Header& header, SnapshotTable table,
         std::vector<uint64_t> l1)
      : disk_(*request.top),
        name_(request.name),
        header_(header),
        table_(std::move(table)),
        l1_(std::move(l1)),
        shadow_(disk_, header, request.progress) {}

  Task<> create();
  Task<> apply();
  Task<> remove();
  Task<> abandon() { return shadow_.abandon(); }

 private:
  size_t find() const;
  std::string new_id() const;
  void require_new_name() const;
  Task<> begin(uint64_t tables, uint64_t l1_entries, uint64_t steps);
  Task<> replace_l1(std::vector<uint64_t> l1);
  Task<> replace_table();
  Task<> keep_sizes();

  Disk& disk_;
  const std::string name_;
  const Header header_;
  SnapshotTable table_;
  std::vector<uint64_t> l1_;
  Shadow shadow_;
};

// An ID may be the name of another snapshot: then who asks has to say which one he means.
size_t Change::find() const {
  std::vector<size_t> found;
  for (size_t i = 0; i < table_.entries.size(); i++) {
    const Snapshot& each = table_.entries[i].what;
    if (each.id == name_ || each.name == name_) found.push_back(i);
  }
  if (found.empty())
    throw Error(ENOENT, disk_.name() + " has no snapshot " + name_ +
                            "; 'cowctl snapshot --list' shows those that there are.");
  if (found.size() > 1) {
    const Snapshot& one = table_.entries[found[0]].what;
    const Snapshot& other = table_.entries[found[1]].what;
    throw Error(EINVAL, disk_.name() + ": " + name_ + " may be snapshot " + one.id + " (" +
                            one.name + ") or snapshot " + other.id + " (" + other.name +
                            "): say an ID or a name that only one of them has.");
  }
  return found[0];
}

// One more than the largest number among them.
std::string Change::new_id() const {
  uint64_t last = 0;
  for (const SnapshotEntry& entry : table_.entries) {
    uint64_t id = 0;
    const std::string& text = entry.what.id;
    std::from_chars(text.data(), text.data() + text.size(), id);
    last = std::max(last, id);
  }
  return std::to_string(last + 1);
}

void Change::require_new_name() const {
  if (name_.empty() || name_.size() > kMaxSnapshotName)
    throw Error(EINVAL, "A snapshot needs a name of 1 to 255 bytes, and '" + name_ + "' has " +
                            std::to_string(name_.size()) + ".");
  for (const SnapshotEntry& entry : table_.entries)
    if (entry.what.name == name_ || entry.what.id == name_)
      throw Error(EEXIST, disk_.name() + " has a snapshot with the name or ID " + name_ +
                              " already: choose another name, or delete that one.");
}

// `tables`: of L2 that may be copied; `l1_entries`: of all L1 tables that are written.
Task<> Change::begin(uint64_t tables, uint64_t l1_entries, uint64_t steps) {
  const uint64_t l1 = clusters_for(header_, l1_entries * 8) + 2;
  const uint64_t list = clusters_for(header_, table_.bytes + 4096) + 1;
  co_await shadow_.begin(tables + l1 + list, steps);
}

Task<> Change::replace_l1(std::vector<uint64_t> l1) {
  shadow_.next.l1_entries = static_cast<uint32_t>(l1.size());
  shadow_.next.l1_offset = co_await shadow_.put_l1(l1);
  shadow_.count_bytes(header_.l1_offset, uint64_t{header_.l1_entries} * 8, -1);
}

Task<> Change::replace_table() {
  const std::vector<std::byte> bytes = encode(table_.entries, disk_.name());
  shadow_.count_bytes(header_.snapshots_offset, table_.bytes, -1);
  shadow_.next.snapshots = static_cast<uint32_t>(table_.entries.size());
  shadow_.next.snapshots_offset = 0;
  if (!bytes.empty()) shadow_.next.snapshots_offset = co_await shadow_.put(bytes);
}

// An entry that does not say how large the disk was means: as large as it is.
Task<> Change::keep_sizes() {
  const auto says = [](const SnapshotEntry& entry) { return entry.has_size; };
  if (shadow_.next.size == header_.size || std::ranges::all_of(table_.entries, says)) co_return;
  co_await replace_table();
}

Task<> Change::create() {
  require_new_name();
  SnapshotEntry entry;
  entry.what.id = new_id();
  entry.what.name = name_;
  entry.what.disk_bytes = header_.size;
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  entry.what.date_sec = static_cast<uint64_t>(now.tv_sec);
  entry.what.date_nsec = static_cast<uint32_t>(now.tv_nsec);
  co_await begin(tables_in(l1_), 2 * l1_.size(), 2 * tables_in(l1_));
  co_await shadow_.count(l1_, 1);
  co_await shadow_.set_copied(l1_, 2);
  entry.l1_entries = static_cast<uint32_t>(l1_.size());
  entry.l1_offset = co_await shadow_.put_l1(l1_);
  co_await replace_l1(l1_);
  table_.entries.push_back(std::move(entry));
  co_await replace_table();
  // What the bitmaps say of the disk is as true as it was; other bits are nothing we know.
  shadow_.next.autoclear &= kBitmaps;
  co_await shadow_.finish();
}

Task<> Change::apply() {
  const SnapshotEntry& entry = table_.entries[find()];
  if (entry.what.disk_bytes == 0)
    throw Error(EINVAL, disk_.name() + ": the disk had no bytes in snapshot " + name_ +
                            ", and such a one is not made here. Use 'qemu-img snapshot'.");
  std::vector<uint64_t> l1 = co_await read_l1_of(disk_, header_, entry);
  const uint64_t tables = tables_in(l1);
  shadow_.next.size = entry.what.disk_bytes;
  shadow_.next.autoclear = 0;
  l1.resize(std::max<uint64_t>({l1.size(), shadow_.next.l1_needed(), 1}));
  co_await begin(tables, l1.size(), 2 * tables + tables_in(l1_));
  co_await shadow_.count(l1, 1);
  co_await shadow_.count(l1_, -1);
  co_await shadow_.set_copied(l1, 1);
  co_await replace_l1(l1);
  co_await keep_sizes();
  co_await shadow_.finish();
}

Task<> Change::remove() {
  const size_t at = find();
  const SnapshotEntry entry = table_.entries[at];
  const std::vector<uint64_t> gone = co_await read_l1_of(disk_, header_, entry);
  co_await begin(tables_in(l1_), l1_.size(), tables_in(gone) + tables_in(l1_));
  co_await shadow_.count(gone, -1);
  shadow_.count_bytes(entry.l1_offset, uint64_t{entry.l1_entries} * 8, -1);
  co_await shadow_.set_copied(l1_, 1);
  co_await replace_l1(l1_);
  table_.entries.erase(table_.entries.begin() + static_cast<ptrdiff_t>(at));
  co_await replace_table();
  shadow_.next.autoclear &= kBitmaps;
  co_await shadow_.finish();
}

Task<> carry_out(Change& change, SnapshotRequest::Action action) {
  switch (action) {
    case SnapshotRequest::Action::create: co_await change.create(); break;
    case SnapshotRequest::Action::apply: co_await change.apply(); break;
    case SnapshotRequest::Action::remove: co_await change.remove(); break;
  }
}

}  // namespace

Task<std::vector<Snapshot>> snapshots(std::shared_ptr<Disk> top) {
  const Header header = co_await read_header(*top);
  SnapshotTable table = co_await read_snapshots(*top, header);
  std::vector<Snapshot> all;
  for (SnapshotEntry& entry : table.entries) all.push_back(std::move(entry.what));
  co_return all;
}

Task<> snapshot(SnapshotRequest request) {
  const Header header = co_await header_to_change(*request.top);
  SnapshotTable table = co_await read_snapshots(*request.top, header);
  std::vector<uint64_t> l1 = co_await read_l1(*request.top, header.l1_offset, header.l1_entries);
  Change change(request, header, std::move(table), std::move(l1));
  std::exception_ptr failure;
  try {
    co_await carry_out(change, request.action);
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return;
  co_await change.abandon();
  std::rethrow_exception(failure);
}

}  // namespace cowd::qcow2
