// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/messages.hh"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "libdmu/dmu.h"

namespace cowd {

namespace {

const Range& range_of(const Answer& answer) {
  return std::visit([](const auto& any) -> const Range& { return any.range; }, answer);
}

uint32_t side_dest(const Side& side) {
  switch (side.kind) {
    case Side::Kind::zero: return DMU_DEST_ZERO;
    case Side::Kind::disk: return side.dest;
    case Side::Kind::none: break;
  }
  return DMU_DEST_NONE;
}

uint64_t side_sector(const Side& side) { return side.kind == Side::Kind::disk ? side.sector : 0; }

OutMessage map_message(uint64_t id, const Extent& extent) {
  OutMessage out;
  out.msg = dmu_msg_map(id, extent.range.sector, extent.range.len);
  dmu_map_read(&out.msg, side_dest(extent.read), side_sector(extent.read));
  dmu_map_write(&out.msg, side_dest(extent.write), side_sector(extent.write));
  if (extent.granule) dmu_map_overlay(&out.msg, extent.granule);
  out.msg.flags |= (extent.copy_first ? DMU_F_COPY_FIRST : 0) | (extent.sync ? DMU_F_SYNC : 0) |
                   (extent.is_volatile ? DMU_F_VOLATILE : 0) |
                   (extent.temporary ? DMU_F_TEMPORARY : 0) |
                   (extent.uncommitted ? DMU_F_UNCOMMITTED : 0);
  return out;
}

OutMessage bitmap_message(uint64_t id, Bitmap bitmap) {
  OutMessage out;
  out.msg = bitmap.all ? dmu_msg_bitmap_all(id, 0, bitmap.range.sector, bitmap.range.len)
                       : dmu_msg_bitmap(id, 0, bitmap.range.sector, bitmap.range.len, nullptr,
                                        static_cast<uint32_t>(bitmap.bits.size()));
  out.payload = std::move(bitmap.bits);
  return out;
}

OutMessage data_message(uint64_t id, Data data) {
  OutMessage out;
  out.msg = dmu_msg_data(id, data.range.sector, nullptr, static_cast<uint32_t>(data.bytes.size()));
  out.payload = std::move(data.bytes);
  return out;
}

bool is_overlay(const Answer& answer) {
  const auto* extent = std::get_if<Extent>(&answer);
  return extent && extent->granule;
}

}  // namespace

OutMessage answer_message(uint64_t id, Answer answer) {
  if (auto* extent = std::get_if<Extent>(&answer)) return map_message(id, *extent);
  if (auto* bitmap = std::get_if<Bitmap>(&answer)) return bitmap_message(id, std::move(*bitmap));
  return data_message(id, std::move(std::get<Data>(answer)));
}

OutMessage push_message(uint64_t gen, Answer answer) {
  OutMessage out = answer_message(0, std::move(answer));
  out.msg.gen = gen;
  return out;
}

bool can_push(const Answer& answer) {
  if (std::holds_alternative<Data>(answer)) return false;
  const auto* extent = std::get_if<Extent>(&answer);
  return !extent || !extent->temporary;
}

Access fault_access(const dmu_msg& fault) {
  if (fault.flags & DMU_F_LEAF) return Access::leaf;
  return fault.flags & DMU_F_WRITE ? Access::write : Access::read;
}

Promotion promotion_of(const dmu_msg& promoted) {
  return {{promoted.sector, promoted.len},
          promoted.write_dest,
          promoted.write_sector,
          promoted.seq,
          (promoted.flags & DMU_F_REPLAY) != 0};
}

std::vector<OutMessage> fault_answers(uint64_t id, uint64_t gen, Range range,
                                      std::vector<Answer> answers) {
  std::vector<OutMessage> before, after;
  OutMessage main;
  bool found = false;
  std::optional<Extent> overlay;
  for (auto& answer : answers) {
    const Range& covers = range_of(answer);
    if (!found && covers.sector <= range.sector && range.sector < covers.end()) {
      found = true;
      if (is_overlay(answer)) overlay = std::get<Extent>(answer);
      main = answer_message(id, std::move(answer));
      continue;
    }
    if (!can_push(answer)) continue;
    // Bits are loaded into an overlay that is there; plain extents are put there
    // first, so that the bios that the id lets go on find all of them.
    auto& list = overlay || std::holds_alternative<Bitmap>(answer) ? after : before;
    list.push_back(push_message(gen, std::move(answer)));
  }
  if (!found) return {};
  // The id lets the bios go on at once, so the bits come before it, and for them the overlay: else
  // they would be asked for. Where the kernel refuses that, the answer says it once more.
  const auto is_bits = [](const OutMessage& out) { return out.msg.type == DMU_MSG_BITMAP; };
  if (overlay && std::any_of(after.begin(), after.end(), is_bits)) {
    before.push_back(push_message(gen, *overlay));
    std::move(after.begin(), after.end(), std::back_inserter(before));
    after.clear();
  }
  before.push_back(std::move(main));
  std::move(after.begin(), after.end(), std::back_inserter(before));
  return before;
}

}  // namespace cowd
