// SPDX-License-Identifier: GPL-2.0-or-later
// What the plugin's descriptor offers, one function a source file; and what they share.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "formats/plugin.hh"
#include "formats/vmdk/tables.hh"

namespace cowd::vmdk {

Task<> create(CreateRequest request);
Task<std::unique_ptr<Image>> open(OpenRequest request);
Task<nlohmann::json> info(std::shared_ptr<Disk> top);
Task<CheckResult> check(CheckRequest request);
Task<uint64_t> room(std::shared_ptr<Disk> top);

// What the top says of itself: its text, or the one in a sparse file.
struct Top {
  bool sparse = false;  // the top is the one extent
  SparseHeader header;  // if it is
  Text text;
  Descriptor descriptor;
};
Task<Top> read_top(Disk& top);

// The extents that it names, opened. Null references: only a top that is all of itself.
enum class Use { read, write, repair };
Task<std::vector<Part>> open_parts(std::shared_ptr<Disk> top, const Top& said,
                                   References* references, Use use,
                                   uint64_t cache_bytes = kMetadataCache);

inline constexpr size_t kMaxParts = 48;  // destinations of a device, with room for those beneath

}  // namespace cowd::vmdk
