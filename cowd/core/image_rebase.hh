// SPDX-License-Identifier: GPL-2.0-or-later
// What must be written into an image before it may name another base.
#pragma once

#include <cstdint>

#include "formats/plugin.hh"

namespace cowd {

// Where the image has nothing of its own and its disk reads other than `next`, what it reads is
// written into it. `top` is opened for writing over its old base; null: `next` is all zeroes, as
// it is behind its end. Durable when it returns: then the name may be changed. The disk reads
// the same at any moment. Gives the bytes written.
Task<uint64_t> copy_up(Image& top, Image* next, Progress progress);

}  // namespace cowd
