// SPDX-License-Identifier: GPL-2.0-or-later
// What the plugin's descriptor offers, one function a source file.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "formats/plugin.hh"

namespace cowd::vhd {

Task<> create(CreateRequest request);
Task<std::unique_ptr<Image>> open(OpenRequest request);
Task<nlohmann::json> info(std::shared_ptr<Disk> top);
Task<CheckResult> check(CheckRequest request);
Task<uint64_t> room(std::shared_ptr<Disk> top);

}  // namespace cowd::vhd
