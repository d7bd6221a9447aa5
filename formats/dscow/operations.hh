// SPDX-License-Identifier: GPL-2.0-or-later
// What the plugin's descriptor offers, one function a source file.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "formats/dscow/header.hh"
#include "formats/plugin.hh"

namespace cowd::dscow {

uint64_t store_size(uint64_t virtual_bytes, const Options& options);
Task<> create(CreateRequest request);
Task<std::unique_ptr<Image>> open(OpenRequest request);
Task<nlohmann::json> info(std::shared_ptr<Disk> top);
Task<CheckResult> check(CheckRequest request);
Task<> begin_commit(CommitRequest request);
Task<> end_commit(CommitRequest request);

// Throws if the disk is shorter than its header says.
void require_room(const Disk& store, const Header& header);

}  // namespace cowd::dscow
