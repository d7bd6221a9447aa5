// SPDX-License-Identifier: GPL-2.0-or-later
// Checks an image. Tables and clusters that are not in the file, or on each other, are errors,
// and none is repaired: nothing in the image says which of two is right. Room that nothing uses
// cannot be told from room that is: the format counts nothing.
#include <utility>

#include "cowd/core/error.hh"
#include "formats/qcow/qcow.hh"
#include "formats/qcow/tables.hh"

namespace cowd::qcow {

Task<CheckResult> check(CheckRequest request) {
  CheckResult result;
  std::string failure;
  try {
    const Header header = co_await read_header(*request.top);
    Clusters clusters(*request.top, header);
    co_await clusters.load();
    const Clusters::Use use = co_await clusters.used(Clusters::Look::overlaps, request.progress);
    result.total_granules = header.clusters();
    result.allocated_granules = use.clusters;
    result.errors = use.errors.size();
    result.findings = use.errors;
  } catch (const Error& error) {
    if (error.code() != EINVAL) throw;
    failure = error.what();
  }
  if (!failure.empty()) {
    result.errors++;
    result.findings.push_back(failure);
  }
  co_return result;
}

}  // namespace cowd::qcow
