// SPDX-License-Identifier: GPL-2.0-or-later
// One question to qemu-img about an image that has come to the end of a sequence.
#pragma once

#include <string>

#include "tests/sim/growing_world.hh"

namespace cowd::sim {

// What is wrong with the file `image` in a folder, "" if it is nothing: that its disk is not
// `disk`; what `qemu-img check` finds, leaks too, if the format has a check; that the file goes on
// behind what is used, where that can be told; that `qemu-img map` tells something else than `ours`
// does. What the image names is in the folder too.
std::string judged_by_qemu(const Folder& folder, const std::string& qemu_format, bool has_check,
                           const Bytes& disk, Image& ours);

}  // namespace cowd::sim
