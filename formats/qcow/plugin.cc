// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/qcow/header.hh"
#include "formats/qcow/qcow.hh"

namespace cowd::qcow {
namespace {

constexpr FormatDescriptor describe() {
  FormatDescriptor format;
  format.name = "qcow";
  format.description = "the first version of QEMU's copy-on-write format";
  format.create_options =
      "size=size of the disk; default: that of the backing file\n"
      "backing_file=what the image lies on\n"
      "backing_fmt=the format of that: raw, qcow, ...\n";
  format.probe = is_qcow;
  format.create = create;
  format.open = open;
  format.info = info;
  format.check = check;
  format.room = room;
  format.begin_commit = begin_commit;
  format.end_commit = end_commit;
  format.rebase = rebase;
  return format;
}

}  // namespace
}  // namespace cowd::qcow

constinit const cowd::FormatDescriptor cowd_format = cowd::qcow::describe();
