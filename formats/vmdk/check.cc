// SPDX-License-Identifier: GPL-2.0-or-later
// Checks an image and the files it is made of.
//
//   found                                              counts as   repair
//   a file is missing, too short or not what it should error       none
//   a grain is not in its file, on tables, or two are
//     in one place                                     error       none
//   the redundant table says something else            leak        written from the other
//   not closed                                         a remark    none
// The tables may differ after a crash, in grains that are in their place: hence a leak.
#include <utility>

#include "cowd/core/error.hh"
#include "formats/vmdk/vmdk.hh"

namespace cowd::vmdk {
namespace {

Task<> check_parts(const CheckRequest& request, CheckResult& result) {
  const Top said = co_await read_top(*request.top);
  const bool repair = request.repair;
  const Use use_parts = repair ? Use::repair : Use::read;
  std::vector<Part> parts =
      co_await open_parts(request.top, said, request.references.get(), use_parts);
  for (Part& part : parts) {
    if (!part.sparse) continue;
    const SparseHeader& header = part.sparse->header();
    const SparseExtent::Use use = co_await part.sparse->used(repair && !part.disk->read_only());
    result.errors += use.errors.size();
    for (const std::string& each : use.errors) result.findings.push_back(each);
    result.total_granules += (part.range.len + header.grain - 1) / header.grain;
    result.allocated_granules += use.grains;
    (repair ? result.leaks_fixed : result.leaks) += use.different;
    if (use.different != 0)
      result.findings.push_back(part.disk->name() + ": " + std::to_string(use.different) +
                                " grain tables are not as their redundant ones.");
    if (header.unclean)
      result.findings.push_back(part.disk->name() +
                                " was not closed, or is attached; this is harmless.");
    if (repair) co_await part.disk->flush();
  }
}

}  // namespace

Task<CheckResult> check(CheckRequest request) {
  CheckResult result;
  std::string failure;
  try {
    co_await check_parts(request, result);
  } catch (const Error& error) {
    if (error.code() != EINVAL && error.code() != ENOENT) throw;
    failure = error.what();
  }
  if (!failure.empty()) {
    result.errors++;
    result.findings.push_back(failure);
  }
  if (request.progress) request.progress(1, 1);
  co_return result;
}

}  // namespace cowd::vmdk
