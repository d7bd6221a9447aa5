// SPDX-License-Identifier: GPL-2.0-or-later
// Writes what an image holds into its base.
//
// Order, so that a crash anywhere loses nothing:
//   1. begin_commit of the format: from here on the top bears that its base changes; durable
//   2. the base gets what the top holds, is made durable and closed
//   3. end_commit: the top is emptied, or told what its base is now
// Until 3 the top has all it had, and the disk reads the same through it whatever is in the
// base already: what the base has more is covered by the top. So it can be done again.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "formats/plugin.hh"

namespace cowd {

struct CommitPlan {
  const FormatDescriptor* format = nullptr;  // of the top
  CommitRequest request;
  std::unique_ptr<Image> top;  // read-only; what is beneath is never read through it
  // Called once, after begin_commit: opens it for writing, as long as the top at least.
  std::function<Task<std::unique_ptr<Image>>()> open_base;
  std::shared_ptr<Disk> base_disk;  // cut to what is used in the end
};

struct CommitCounts {
  uint64_t copied = 0;  // bytes of data
  uint64_t zeroed = 0;  // bytes
};

Task<CommitCounts> commit_image(CommitPlan plan);

// What is beneath the top while it is committed: as long as `image`, with its stats(), and all
// zeroes. The real one changes meanwhile, and nothing of it is wanted.
std::unique_ptr<Image> stand_in_for(const Image& image);

}  // namespace cowd
