// SPDX-License-Identifier: GPL-2.0-or-later
// What the plugin's descriptor offers, one function a source file.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "formats/plugin.hh"
#include "formats/qcow2/layout.hh"

namespace cowd::qcow2 {

Task<> create(CreateRequest request);
Task<std::unique_ptr<Image>> open(OpenRequest request);
Task<nlohmann::json> info(std::shared_ptr<Disk> top);
Task<CheckResult> check(CheckRequest request);
Task<uint64_t> room(std::shared_ptr<Disk> top);
Task<std::vector<Snapshot>> snapshots(std::shared_ptr<Disk> top);
Task<> snapshot(SnapshotRequest request);
Task<> resize(ResizeRequest request);
Task<> begin_commit(CommitRequest request);
Task<> end_commit(CommitRequest request);
Task<> rebase(RebaseRequest request);

// The L1 table, or that of a snapshot.
Task<std::vector<uint64_t>> read_l1(Disk& disk, uint64_t offset, uint64_t entries);
// Refcounts as they must be by what names clusters; for an image that was not closed. Clears
// the dirty bit, also in `header`. Throws EIO where what names them is damaged.
Task<> rebuild_refcounts(Disk& disk, Header& header);

}  // namespace cowd::qcow2
