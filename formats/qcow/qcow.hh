// SPDX-License-Identifier: GPL-2.0-or-later
// What the plugin's descriptor offers; and what its parts share.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "formats/plugin.hh"
#include "formats/qcow/header.hh"

namespace cowd::qcow {

Task<> create(CreateRequest request);
Task<std::unique_ptr<Image>> open(OpenRequest request);
Task<nlohmann::json> info(std::shared_ptr<Disk> top);
Task<CheckResult> check(CheckRequest request);
Task<uint64_t> room(std::shared_ptr<Disk> top);
Task<> begin_commit(CommitRequest request);
Task<> end_commit(CommitRequest request);
Task<> rebase(RebaseRequest request);

// Gives the image another backing file, or another place to the name of the one it has; a crash
// leaves the old or the new. dry: only refuses.
Task<> write_backing(Disk& top, Header& header, const BackingName& name, bool dry);

}  // namespace cowd::qcow
