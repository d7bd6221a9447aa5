// SPDX-License-Identifier: GPL-2.0-or-later
// Gives the disk of an image that nobody serves another size. New tables take the place of those
// that change at once, with the header that has the new size: shadow.hh.
//
// What lies behind the smaller of both sizes is dropped: clusters of the disk, and what a
// snapshot with the state of a machine has left behind its end. What is new reads as zeroes: where
// a longer backing file would be seen, clusters of zeroes are put, and a last cluster that the old
// size had cut is written anew, for nobody knows what is behind the cut.
#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/beneath.hh"
#include "formats/common/options.hh"
#include "formats/qcow2/operations.hh"
#include "formats/qcow2/shadow.hh"
#include "formats/qcow2/snapshot_table.hh"

namespace cowd::qcow2 {
namespace {

// What was opened already, once: references are not followed twice.
class Opened : public References {
 public:
  explicit Opened(std::unique_ptr<Image> image) : image_(std::move(image)) {}
  Task<std::shared_ptr<Disk>> disk(const Disk& from, std::string path, bool) override {
    throw Error(EINVAL, from.name() + " names " + path + ", which is not opened here.");
  }
  Task<std::unique_ptr<Image>> image(const Disk&, std::string, std::string) override {
    co_return std::move(image_);
  }

 private:
  std::unique_ptr<Image> image_;
};

class Resize {
 public:
  Resize(const ResizeRequest& request, const Header& header, SnapshotTable table,
         std::vector<uint64_t> l1);

  void refuse() const;
  Task<> look_beneath();
  Task<> carry_out();
  Task<> abandon() { return shadow_.abandon(); }

 private:
  bool grows() const { return size_ > header_.size; }
  uint64_t end_of(uint64_t index) const { return (index + 1) * header_.l2_entries(); }
  bool changes(uint64_t index) const;
  Task<> change_table(uint64_t index);
  Task<> drop_behind(Buffer& table, uint64_t index);
  Task<> drop_entry(Buffer& table, uint64_t index, uint64_t within);
  void put_zeroes(Buffer& table, uint64_t index) const;
  Task<> mend_last(Buffer& table, uint64_t index);
  Task<Buffer> last_cluster();
  Entry entry_of(const Buffer& table, uint64_t index, uint64_t within) const;
  void set_entry(Buffer& table, uint64_t within, uint64_t raw, uint64_t bitmap) const;
  Task<> keep_sizes();

  const ResizeRequest& request_;
  Disk& disk_;
  const Header header_;
  SnapshotTable table_;
  std::vector<uint64_t> l1_;
  const uint64_t size_;
  Shadow shadow_;
  uint64_t keep_;          // clusters of the disk that stay
  uint64_t zero_end_ = 0;  // clusters from keep_ to there are to be zeroes
  std::unique_ptr<Image> backing_;
  bool covered_ = false;  // it is longer than the disk was
};

Resize::Resize(const ResizeRequest& request, const Header& header, SnapshotTable table,
               std::vector<uint64_t> l1)
    : request_(request),
      disk_(*request.top),
      header_(header),
      table_(std::move(table)),
      l1_(std::move(l1)),
      size_(request.size),
      shadow_(disk_, header, request.progress) {
  shadow_.next.size = size_;
  shadow_.next.autoclear = 0;
  keep_ = std::min(header_.clusters(), shadow_.next.clusters());
}

void Resize::refuse() const {
  const std::string& name = disk_.name();
  if (request_.base)
    throw Error(EINVAL, name + " names what lies under it itself: leave out the base, " +
                            request_.base->name() + ".");
  if (size_ == 0 || size_ % kSector != 0 || size_ > kMaxVirtualSize)
    throw Error(EINVAL, name + ": a qcow2 disk has 512 bytes to 1024P, in multiples of 512, and " +
                            std::to_string(size_) + " was asked for.");
  if (shadow_.next.l1_needed() * 8 > kMaxL1Bytes)
    throw Error(EFBIG, name + ": a disk of " + human_size(size_) + " with clusters of " +
                           human_size(header_.cluster()) +
                           " needs an L1 table of more than 32 MiB: convert it to larger clusters "
                           "with 'qemu-img convert'.");
  if (header_.version == 2 && header_.snapshots)
    throw Error(ENOTSUP, name +
                             " has snapshots, which do not say in version 2 of qcow2 how large "
                             "the disk was: delete them, or 'qemu-img amend -o compat=1.1'.");
}

// A backing file is opened only to see how long it is, and what is in the last cluster.
Task<> Resize::look_beneath() {
  if (header_.backing_name.empty() || !grows()) co_return;
  if (header_.backing_format.empty())
    throw Error(EINVAL, disk_.name() + " lies on " + header_.backing_name +
                            " and does not say in which format that is, which is not guessed: "
                            "set it with 'qemu-img rebase -u -b " +
                            header_.backing_name + " -F FORMAT'.");
  if (!request_.references)
    throw Error(EINVAL, disk_.name() + " lies on " + header_.backing_name +
                            ", and no other files are opened here.");
  backing_ =
      co_await request_.references->image(disk_, header_.backing_name, header_.backing_format);
  covered_ = backing_->sectors() * kSector > header_.size;
  if (!covered_) co_return;
  if (header_.version == 2)
    throw Error(ENOTSUP, disk_.name() + " would show more of " + header_.backing_name +
                             ", and version 2 of qcow2 cannot cover that with zeroes: 'qemu-img "
                             "amend -o compat=1.1' first.");
  zero_end_ = shadow_.next.clusters();
}

Task<> Resize::carry_out() {
  const uint64_t needed = std::max<uint64_t>(shadow_.next.l1_needed(), 1);
  const uint64_t had = l1_.size();
  const std::vector<uint64_t> before = l1_;
  // No shorter than it was, if that is all.
  l1_.resize(std::max(had, needed));
  uint64_t tables = 0;
  for (uint64_t i = 0; i < l1_.size(); i++) tables += changes(i);
  const uint64_t l1_clusters = (l1_.size() * 8 >> header_.cluster_bits) + 1;
  const uint64_t list = (table_.bytes + table_.entries.size() * 32) >> header_.cluster_bits;
  co_await shadow_.begin(tables + 1 + l1_clusters + list + 1, tables);
  for (uint64_t i = 0; i < l1_.size(); i++) {
    if (!changes(i)) continue;
    co_await change_table(i);
    if (request_.progress) request_.progress(std::min(i + 1, tables), tables);
  }
  if (l1_ != before) {
    l1_.resize(needed);
    shadow_.next.l1_entries = static_cast<uint32_t>(needed);
    shadow_.next.l1_offset = co_await shadow_.put_l1(l1_);
    shadow_.count_bytes(header_.l1_offset, had * 8, -1);
  }
  co_await keep_sizes();
  co_await shadow_.finish();
}

bool Resize::changes(uint64_t index) const {
  const uint64_t first = index * header_.l2_entries();
  const bool dropped = l1_[index] && end_of(index) > keep_;
  const bool zeroed = first < zero_end_ && end_of(index) > keep_;
  const bool cut = grows() && header_.size % header_.cluster() != 0 && first < keep_ &&
                   keep_ <= end_of(index) && (l1_[index] || covered_);
  return dropped || zeroed || cut;
}

Task<> Resize::change_table(uint64_t index) {
  const uint64_t first = index * header_.l2_entries();
  if (l1_[index] && first >= keep_) {
    co_await shadow_.count_table(l1_[index], index, -1);
    l1_[index] = 0;
  }
  Buffer table(header_.cluster());
  if (l1_[index]) co_await read_any(disk_, l1_[index] & kOffsetMask, table);
  const Buffer before = table;
  if (l1_[index]) co_await drop_behind(table, index);
  put_zeroes(table, index);
  if (first < keep_ && keep_ <= end_of(index)) co_await mend_last(table, index);
  if (table == before) co_return;
  if (l1_[index]) shadow_.count_bytes(l1_[index] & kOffsetMask, 1, -1);
  const uint64_t at = co_await shadow_.put(table);
  l1_[index] = at | kCopied;
}

Task<> Resize::drop_behind(Buffer& table, uint64_t index) {
  const uint64_t first = index * header_.l2_entries();
  for (uint64_t i = 0; i < header_.l2_entries(); i++)
    if (first + i >= keep_) co_await drop_entry(table, index, i);
}

Task<> Resize::drop_entry(Buffer& table, uint64_t index, uint64_t within) {
  const Entry entry = entry_of(table, index, within);
  co_await shadow_.count_entry(entry, -1);
  set_entry(table, within, 0, 0);
}

void Resize::put_zeroes(Buffer& table, uint64_t index) const {
  const uint64_t first = index * header_.l2_entries();
  for (uint64_t i = 0; i < header_.l2_entries(); i++) {
    if (first + i < keep_ || first + i >= zero_end_) continue;
    if (header_.extended())
      set_entry(table, i, 0, 0xffffffff00000000);
    else
      set_entry(table, i, kZero, 0);
  }
}

// The last cluster of before, of which the disk showed a part.
Task<> Resize::mend_last(Buffer& table, uint64_t index) {
  if (!grows() || header_.size % header_.cluster() == 0) co_return;
  const uint64_t within = (keep_ - 1) % header_.l2_entries();
  const Entry entry = entry_of(table, index, within);
  if (entry.kind == Entry::Kind::zero || (entry.kind == Entry::Kind::none && !covered_)) co_return;
  const Buffer bytes = co_await last_cluster();
  const uint64_t at = co_await shadow_.put(bytes);
  co_await shadow_.count_entry(entry, -1);
  set_entry(table, within, at | kCopied, header_.extended() ? 0xffffffff : 0);
}

// As the disk shows it, and zeroes behind.
Task<Buffer> Resize::last_cluster() {
  OpenRequest request;
  request.top = request_.top;
  request.read_only = true;
  request.references = std::make_shared<Opened>(std::move(backing_));
  std::unique_ptr<Image> image = co_await open(std::move(request));
  Beneath beneath(std::move(image), 0);
  const uint64_t offset = round_down(header_.size, header_.cluster());
  Buffer bytes(header_.cluster());
  const Range range{offset / kSector, (header_.size - offset) / kSector};
  const std::span<std::byte> head = std::span<std::byte>(bytes).first(header_.size - offset);
  co_await beneath.read_bytes(range, head);
  co_await beneath.close();
  co_return bytes;
}

Entry Resize::entry_of(const Buffer& table, uint64_t index, uint64_t within) const {
  const uint64_t at = within * header_.l2_entry_bytes();
  const uint64_t bitmap = header_.extended() ? load_be<uint64_t>(table, at + 8) : 0;
  return decode(header_, load_be<uint64_t>(table, at), bitmap,
                index * header_.l2_entries() + within, disk_.name());
}

void Resize::set_entry(Buffer& table, uint64_t within, uint64_t raw, uint64_t bitmap) const {
  const uint64_t at = within * header_.l2_entry_bytes();
  store_be<uint64_t>(table, at, raw);
  if (header_.extended()) store_be<uint64_t>(table, at + 8, bitmap);
}

// A snapshot that does not say how large the disk was means: as large as it is.
Task<> Resize::keep_sizes() {
  const auto says = [](const SnapshotEntry& entry) { return entry.has_size; };
  if (std::ranges::all_of(table_.entries, says)) co_return;
  const std::vector<std::byte> bytes = encode(table_.entries, disk_.name());
  shadow_.next.snapshots_offset = co_await shadow_.put(bytes);
  shadow_.count_bytes(header_.snapshots_offset, table_.bytes, -1);
}

}  // namespace

Task<> resize(ResizeRequest request) {
  const Header header = co_await header_to_change(*request.top);
  SnapshotTable table = co_await read_snapshots(*request.top, header);
  std::vector<uint64_t> l1 = co_await read_l1(*request.top, header.l1_offset, header.l1_entries);
  Resize work(request, header, std::move(table), std::move(l1));
  work.refuse();
  if (request.size == header.size) co_return;
  co_await work.look_beneath();
  std::exception_ptr failure;
  try {
    co_await work.carry_out();
  } catch (...) {
    failure = std::current_exception();
  }
  if (!failure) co_return;
  co_await work.abandon();
  std::rethrow_exception(failure);
}

}  // namespace cowd::qcow2
