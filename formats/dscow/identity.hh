// SPDX-License-Identifier: GPL-2.0-or-later
// Which base a store belongs to: its size, the UUID of what it holds, and
// checksums of a few of its blocks. That tells a wrong or a changed base most of the
// time; it does not prove that a base is unchanged.
#pragma once

#include <cstdint>
#include <string>

#include "formats/dscow/header.hh"
#include "formats/plugin.hh"

namespace cowd::dscow {

// Where sample i of a base of so many bytes begins: 0, 1 MiB (where most first
// partitions begin), then evenly over all of it; multiples of 4 KiB. A sample is
// 4 KiB, or what is left.
uint64_t sample_offset(uint64_t size, size_t i);

// Reads at most kSamples blocks of the first `size` bytes.
Task<BaseIdentity> identify(Disk& base, uint64_t size);

// Throws unless `base` (null: none given) can be the one the header names. A base
// that has grown is accepted: what it has beyond its old end is not read.
Task<> require_base(const std::string& store, const Header& header, Disk* base);

}  // namespace cowd::dscow
