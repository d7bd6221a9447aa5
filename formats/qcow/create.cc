// SPDX-License-Identifier: GPL-2.0-or-later
// Makes an image: the first-level table, all 0, flush, the header.
#include <algorithm>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/options.hh"
#include "formats/growing/making.hh"
#include "formats/qcow/header.hh"
#include "formats/qcow/qcow.hh"

namespace cowd::qcow {

Task<> create(CreateRequest request) {
  Header header;
  header.size = growing::wanted_size(request);
  refuse_others(request.options, "qcow");
  Disk& top = *request.top;
  if (header.size > 1ULL << 62 || header.tables() * 8 > kMaxFirstLevel)
    throw Error(EFBIG, "A qcow image of " + human_size(header.size) + " in " + top.name() +
                           " cannot be: they end at 8 TiB. Use the format qcow2.");
  co_await growing::clear_top(request, "a qcow image");
  const uint64_t bytes = round_up(header.first_level + header.tables() * 8, header.cluster());
  co_await growing::make_room(top, bytes);
  co_await growing::write_zeroes(top, 0, bytes);
  co_await top.flush();
  Buffer head(kHeaderBytes);
  encode(header, head);
  co_await write_any(top, 0, head);
  co_await top.flush();
  if (request.progress) request.progress(1, 1);
}

}  // namespace cowd::qcow
