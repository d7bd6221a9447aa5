// SPDX-License-Identifier: GPL-2.0-or-later
// Values of create options, and sizes as people read them.
#pragma once

#include <cstdint>
#include <string>

#include "formats/plugin.hh"

namespace cowd {

// "4096", "64K", "10G", "1.5T" is not one: whole numbers with K, M, G, T, P (powers
// of 1024, "KiB" and the like too). Throws EINVAL naming the option.
uint64_t parse_size(const std::string& option, const std::string& text);

// Takes options[name] out of the map; `otherwise` where it is not given.
uint64_t take_size(Options& options, const std::string& name, uint64_t otherwise);

// The same for what is no size.
std::string take_text(Options& options, const std::string& name, const std::string& otherwise);

// Throws EINVAL naming what take_... has left over.
void refuse_others(const Options& options, const std::string& format);

// "10 GiB", "4 KiB", "1000 bytes": exact, in the largest unit that divides it.
std::string human_size(uint64_t bytes);

}  // namespace cowd
