// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/qcow2/operations.hh"

namespace cowd::qcow2 {
namespace {

constexpr FormatDescriptor describe() {
  FormatDescriptor format;
  format.name = "qcow2";
  format.description = "QEMU's image format, versions 2 and 3";
  format.create_options =
      "size=size of the disk; default: that of the backing file\n"
      "cluster_size=unit of allocation, 512 to 2M, a power of two; default: 64K\n"
      "compat=1.1 (default) or 0.10, for programs before 2012\n"
      "refcount_bits=1 to 64, a power of two; default: 16\n"
      "lazy_refcounts=on or off (default): refcounts may be out of date until the image is closed\n"
      "backing_file=what the image lies on\n"
      "backing_fmt=the format of that: raw, qcow2, ...\n"
      "extended_l2=on or off (default): clusters of 32 subclusters, for small writes to large "
      "ones\n"
      "data_file=where the data is, in a file of its own; the image has the tables\n"
      "data_file_raw=on or off (default): the data file can be read as a raw image\n"
      "compression_type=zlib (default) or zstd: for programs that compress\n"
      "preallocation=off (default), metadata: all tables, falloc or full: room for the data too\n";
  format.probe = looks_like;
  format.create = create;
  format.open = open;
  format.info = info;
  format.check = check;
  format.room = room;
  format.resize = resize;
  format.snapshots = snapshots;
  format.snapshot = snapshot;
  format.begin_commit = begin_commit;
  format.end_commit = end_commit;
  format.rebase = rebase;
  return format;
}

}  // namespace
}  // namespace cowd::qcow2

constinit const cowd::FormatDescriptor cowd_format = cowd::qcow2::describe();
