// SPDX-License-Identifier: GPL-2.0-or-later
// CRC-32C (Castagnoli), as in iSCSI, ext4 and btrfs: crc32c("123456789") is 0xe3069283.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace cowd {

uint32_t crc32c(std::span<const std::byte> bytes);

}  // namespace cowd
