// SPDX-License-Identifier: GPL-2.0-or-later
// Checks an image.
//
//   found                                       counts as   repair
//   one of the two footers is missing, wrong    leak        it is written from the other
//     or says something else
//   the header or the table is not valid        error       none
//   blocks on each other, or on the headers     error       none
//   room that nothing uses                      a remark    none
// A footer is what a crash may leave missing, and harmless: hence a leak.
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/vhd/tables.hh"
#include "formats/vhd/vhd.hh"

namespace cowd::vhd {
namespace {

Task<> check_footers(const CheckRequest& request, const Footers& footers, CheckResult& result) {
  const auto tell = [&result](const char* which, const std::string& problem) {
    result.findings.push_back(std::string("The footer at the ") + which +
                              " is not as it must be: " + problem + "; the other one is good.");
  };
  if (!footers.problem_at_end.empty()) tell("end", footers.problem_at_end);
  if (!footers.problem_at_start.empty()) tell("beginning", footers.problem_at_start);
  const uint64_t wrong = !footers.problem_at_end.empty() + !footers.problem_at_start.empty();
  if (wrong == 0) co_return;
  if (!request.repair) {
    result.leaks += wrong;
    co_return;
  }
  Disk& top = *request.top;
  if (!footers.problem_at_start.empty()) co_await write_any(top, 0, footers.current.raw);
  if (!footers.problem_at_end.empty())
    co_await write_any(top, top.size() - kFooterBytes, footers.current.raw);
  co_await top.flush();
  result.leaks_fixed += wrong;
}

void check_blocks(const BlockTables& tables, CheckResult& result) {
  for (std::string& sentence : tables.overlaps()) {
    result.errors++;
    result.findings.push_back(std::move(sentence));
  }
  result.total_granules = (tables.sectors() + tables.block_sectors() - 1) / tables.block_sectors();
  result.allocated_granules = tables.allocated();
}

// The footer goes to the end of the file, or behind the last block where the file ends in
// what is no block of the image.
Task<> check_dynamic(const CheckRequest& request, const Footers& footers, CheckResult& result) {
  Disk& top = *request.top;
  const Header header = co_await read_header(top, footers.current);
  BlockTables tables(top, footers.current, header);
  co_await tables.load();
  check_blocks(tables, result);
  const uint64_t end = co_await tables.used_end();
  if (end * kSector > top.size() - kFooterBytes) {
    result.errors++;
    result.findings.push_back("There is no room for the footer behind the last block.");
    co_return;
  }
  if (result.errors == 0) co_await check_footers(request, footers, result);
  const uint64_t lost = top.size() - kFooterBytes - end * kSector;
  if (lost != 0)
    result.findings.push_back(std::to_string(lost) +
                              " bytes before the last footer are used by nothing; an attach for "
                              "writing gives them back.");
}

Task<> check_image(const CheckRequest& request, CheckResult& result) {
  const Footers footers = co_await read_footers(*request.top);
  const Footer& footer = footers.current;
  if (footer.type != Type::fixed) {
    co_await check_dynamic(request, footers, result);
    co_return;
  }
  result.total_granules = result.allocated_granules = footer.size / kSector;
  if (footer.size > request.top->size() - kFooterBytes) {
    result.errors++;
    result.findings.push_back("The file is shorter than its disk.");
  }
}

}  // namespace

Task<CheckResult> check(CheckRequest request) {
  CheckResult result;
  std::string failure;
  try {
    co_await check_image(request, result);
  } catch (const Error& error) {
    if (error.code() != EINVAL) throw;
    failure = error.what();
  }
  if (!failure.empty()) {
    result.errors++;
    result.findings.push_back(failure);
  }
  if (request.progress) request.progress(1, 1);
  co_return result;
}

}  // namespace cowd::vhd
