// SPDX-License-Identifier: GPL-2.0-or-later
// Compressed clusters. Source: qcow2.txt, "Cluster mapping" and "Compressed Clusters
// Descriptor": zlib's raw deflate (RFC 1951, no header), or a zstd frame (RFC 8878).
#pragma once

#include <span>
#include <string>

#include "formats/common/bytes.hh"
#include "formats/qcow2/layout.hh"

namespace cowd::qcow2 {

// Fills `out`, a whole cluster. What is behind the compressed bytes in `in` is not looked at.
// `what` names the cluster in the sentence of the EIO that is thrown for a damaged one.
void inflate(Compression compression, std::span<const std::byte> in, std::span<std::byte> out,
             const std::string& what);

}  // namespace cowd::qcow2
