// SPDX-License-Identifier: GPL-2.0-or-later
// Between the plugin's words and the kernel's messages.
#pragma once

#include <linux/dm-userspace.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "formats/plugin.hh"

namespace cowd {

// A message with the bytes that its data field points to when it is sent.
struct OutMessage {
  dmu_msg msg{};
  std::vector<std::byte> payload;
};

// An answer to `id`.
OutMessage answer_message(uint64_t id, Answer answer);

// The same unasked, made of generation `gen`. Not for Data and temporary extents,
// which only answer: see can_push.
OutMessage push_message(uint64_t gen, Answer answer);
bool can_push(const Answer& answer);

// What a FAULT asks and a PROMOTED tells.
Access fault_access(const dmu_msg& fault);
Promotion promotion_of(const dmu_msg& promoted);

// The messages that answer `id`, which asked for `range`, in the order in which
// they must be sent: one carries the id, the others are pushed around it (an id is
// used up by its first answer). Empty if no answer touches the start of the range.
std::vector<OutMessage> fault_answers(uint64_t id, uint64_t gen, Range range,
                                      std::vector<Answer> answers);

}  // namespace cowd
