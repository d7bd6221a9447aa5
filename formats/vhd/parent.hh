// SPDX-License-Identifier: GPL-2.0-or-later
// How a differencing VHD names its parent.
#pragma once

#include <string>

#include "formats/plugin.hh"
#include "formats/vhd/footer.hh"

namespace cowd::vhd {

// Its path as the image has it: the relative one of its locators, or else the parent's name;
// with '/' where Windows has '\'. Throws where there is none.
Task<std::string> parent_path(Disk& top, const Header& header);

}  // namespace cowd::vhd
