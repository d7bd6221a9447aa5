// SPDX-License-Identifier: GPL-2.0-or-later
// Opens an image: everything that can be refused is refused before anything is written.
// What is written then, in this order: refcounts, if the dirty bit says that they are not up
// to date; the header, with the bits cleared that a writer must clear.
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/backing.hh"
#include "formats/common/bytes.hh"
#include "formats/qcow2/image.hh"
#include "formats/qcow2/operations.hh"

namespace cowd::qcow2 {
namespace {

void refuse_request(const OpenRequest& request) {
  const std::string& name = request.top->name();
  if (request.base)
    throw Error(EINVAL, name + " names what lies under it itself: leave out the base, " +
                            request.base->name() +
                            ". 'qemu-img rebase -u' changes what the image names.");
  if (request.durability == Durability::transient)
    throw Error(EINVAL, name +
                            " as a qcow2 disk keeps what is written to it and cannot be "
                            "transient: use the format dscow with it as base.");
  if (request.top->read_only() && !request.read_only)
    throw Error(EROFS,
                name + " cannot be written to: make it writable, or attach the disk read-only.");
}

void refuse_writing(const Disk& top, const Header& header) {
  const auto refuse = [&](const std::string& what, const std::string& then) {
    throw Error(EROFS, top.name() + ": " + what + ", so it is not written to: attach it " +
                           "read-only, or " + then + ".");
  };
  if (header.incompatible & kCorrupt)
    refuse("a program has marked the image as damaged", "run 'cowctl check --repair' first");
  if (header.granule() < top.block_size())
    refuse(std::string("its ") + (header.extended() ? "subclusters" : "clusters") + " of " +
               std::to_string(header.granule()) +
               " bytes are smaller than the blocks of what it lies on (" +
               std::to_string(top.block_size()) + ")",
           "convert it to larger clusters with 'qemu-img convert'");
  if (header.has_data_file() && header.snapshots)
    refuse("it has snapshots, and its data is in a file of its own, where nothing can be shared",
           "convert it with 'qemu-img convert' without data_file");
}

// The kernel maps the whole of the disk to it.
void require_data_file(const Disk& top, const Header& header, const Disk& data) {
  const auto refuse = [&](const std::string& what, const std::string& then) {
    throw Error(EROFS, top.name() + ": its data file " + data.name() + " " + what +
                           ", so nothing is written: attach it read-only, or " + then + ".");
  };
  if (data.read_only()) refuse("cannot be written to", "make that writable");
  if (data.size() < header.size)
    refuse("has " + std::to_string(data.size()) + " bytes, and the disk has " +
               std::to_string(header.size),
           "make it as long with 'truncate -s " + std::to_string(header.size) + "'");
  if (header.granule() < data.block_size())
    refuse("has blocks of " + std::to_string(data.block_size()) +
               " bytes, which are larger than what the image allocates",
           "convert it to larger clusters with 'qemu-img convert'");
}

Task<std::shared_ptr<Disk>> open_data_file(const OpenRequest& request, const Header& header) {
  if (!header.has_data_file()) co_return nullptr;
  if (!request.references)
    throw Error(EINVAL, request.top->name() + " has its data in " + header.data_file +
                            ", and no other files are opened here.");
  const bool writable = !request.read_only;
  co_return co_await request.references->disk(*request.top, header.data_file, writable);
}

Task<std::unique_ptr<Beneath>> open_beneath(const OpenRequest& request, const Header& header) {
  const BackingName backing{header.backing_name, header.backing_format};
  if (backing.file.empty()) co_return nullptr;
  if (backing.format.empty())
    throw Error(EINVAL, request.top->name() + " lies on " + backing.file +
                            " and does not say in which format that is, which is not guessed: "
                            "set it with 'qemu-img rebase -u -b " +
                            backing.file + " -F FORMAT'.");
  const uint32_t first_dest = header.has_data_file() ? 2 : 1;
  co_return co_await open_backing(request, backing, first_dest);
}

// What lies beneath may have larger blocks than the image, and then the whole device has.
void require_granule(const Disk& top, const Header& header, const Beneath& beneath) {
  if (header.granule() >= beneath.block_size()) return;
  throw Error(EROFS, top.name() + ": it lies on " + header.backing_name + ", which has blocks of " +
                         std::to_string(beneath.block_size()) +
                         " bytes, larger than what the image allocates, so it is not written to: "
                         "attach it read-only, or convert it to larger clusters with 'qemu-img "
                         "convert'.");
}

void require_l1(const Disk& top, const Header& header, const std::vector<uint64_t>& l1) {
  for (size_t i = 0; i < l1.size(); i++)
    if (l1[i] & kL1Reserved || (l1[i] & kOffsetMask) % header.cluster() != 0)
      throw Error(EIO, top.name() + ": entry " + std::to_string(i) +
                           " of the L1 table is damaged. Run 'cowctl check', and restore the "
                           "image from a backup.");
}

// Bits of features that a writer does not keep up to date must go before it writes.
Task<> clear_autoclear(Disk& top, Header& header) {
  Header next = header;
  next.autoclear = header.has_data_file() ? header.autoclear & kRawExternal : 0;
  if (next.autoclear == header.autoclear) co_return;
  co_await write_header(top, next);
  co_await top.flush();
  header = next;
}

// Some programs make images without refcounts; everything would be free in them.
Task<> require_refcounts(const Disk& top, const Header& header, Refcounts& refcounts) {
  const uint64_t places[] = {0, header.l1_offset, header.refcount_table_offset};
  for (const uint64_t place : places) {
    const uint64_t count = co_await refcounts.get(place >> header.cluster_bits);
    if (count == 0)
      throw Error(EIO, top.name() + ": the refcounts say that the cluster at " +
                           std::to_string(place) +
                           " is free, and it is not, so nothing can be allocated. Run 'cowctl "
                           "check --repair', or attach it read-only.");
  }
}

}  // namespace

Task<std::unique_ptr<Image>> open(OpenRequest request) {
  refuse_request(request);
  Disk& top = *request.top;
  const Header found = co_await read_header(top);
  auto header = std::make_unique<Header>(found);
  if (!request.read_only) refuse_writing(top, *header);
  std::vector<uint64_t> l1 = co_await read_l1(top, header->l1_offset, header->l1_entries);
  require_l1(top, *header, l1);
  std::shared_ptr<Disk> data_file = co_await open_data_file(request, *header);
  const bool writes = !request.read_only;
  if (writes && data_file) require_data_file(top, *header, *data_file);
  std::unique_ptr<Beneath> beneath = co_await open_beneath(request, *header);
  if (writes && beneath) require_granule(top, *header, *beneath);
  if (writes && header->incompatible & kDirty) co_await rebuild_refcounts(top, *header);
  Header* known = header.get();
  auto image =
      std::make_unique<Qcow2Image>(std::move(request), std::move(header), std::move(data_file),
                                   std::move(beneath), std::move(l1));
  if (writes) {
    co_await image->load_refcounts();
    co_await require_refcounts(top, *known, image->refcounts());
    co_await clear_autoclear(top, *known);
  }
  co_return image;
}

// What there is, everything a second time, and the refcounts of all that, also as they are
// made anew after a crash.
Task<uint64_t> room(std::shared_ptr<Disk> top) {
  const Header header = co_await read_header(*top);
  const uint64_t now = (top->size() + header.cluster() - 1) >> header.cluster_bits;
  const uint64_t data = header.has_data_file() ? 0 : header.clusters();
  const uint64_t clusters = now + data + header.l1_needed() + 1;
  const uint64_t blocks = clusters / header.refcounts_per_block() + 2;
  const uint64_t tables = ((blocks * 8) >> header.cluster_bits) + 2;
  co_return (clusters + 3 * (blocks + tables)) << header.cluster_bits;
}

}  // namespace cowd::qcow2
