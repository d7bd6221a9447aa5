// SPDX-License-Identifier: GPL-2.0-or-later
// Makes an image: the first-level table, all 0, and before it the backing file's name; flush; the
// header.
#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/options.hh"
#include "formats/growing/making.hh"
#include "formats/qcow/header.hh"
#include "formats/qcow/qcow.hh"

namespace cowd::qcow {

Task<> create(CreateRequest request) {
  Header header;
  BackingName backing;
  const std::string format = "qcow";
  const uint64_t beneath = co_await take_backing(request, format, backing);
  if (!request.options.contains("size") && request.size == 0)
    request.size = round_up(beneath, kSector);
  header.size = growing::wanted_size(request);
  refuse_others(request.options, "qcow");
  Disk& top = *request.top;
  if (header.size > 1ULL << 62 || header.tables() * 8 > kMaxFirstLevel)
    throw Error(EFBIG, "A qcow image of " + human_size(header.size) + " in " + top.name() +
                           " cannot be: they end at 8 TiB. Use the format qcow2.");
  if (!backing.file.empty()) {
    set_backing(header, backing, kHeaderBytes);
    header.first_level = round_up(header.backing_end(), 8);
  }
  co_await growing::clear_top(request, "a qcow image");
  const uint64_t bytes = round_up(header.first_level_end(), header.cluster());
  co_await growing::make_room(top, bytes);
  co_await growing::write_zeroes(top, 0, bytes);
  const std::string text = text_of(backing);
  co_await write_any(top, kHeaderBytes, std::as_bytes(std::span(text)));
  co_await top.flush();
  Buffer head(kHeaderBytes);
  encode(header, head);
  co_await write_any(top, 0, head);
  co_await top.flush();
  if (request.progress) request.progress(1, 1);
}

}  // namespace cowd::qcow
