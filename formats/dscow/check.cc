// SPDX-License-Identifier: GPL-2.0-or-later
// Checks a store, and repairs what can be repaired without guessing.
//
//   found                                   counts as   repair
//   one header copy is not valid            leak        the other is written over it
//   the top names a page beyond the disk    error       the bit is cleared
//   a page has bits beyond the disk, or
//     for an edge                           error       the bits are cleared
//   the base is not the right one           error       none
//   the store is too short                  error       none
//   attached, not closed, transient         a remark    none
// A torn header is what a crash may leave, and harmless: hence a leak.
#include <algorithm>
#include <string>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/dscow/bits.hh"
#include "formats/dscow/headers.hh"
#include "formats/dscow/identity.hh"
#include "formats/dscow/operations.hh"
#include "formats/dscow/regions.hh"

namespace cowd::dscow {
namespace {

class Checker {
 public:
  Checker(CheckRequest request, Headers headers)
      : request_(std::move(request)),
        top_(*request_.top),
        headers_(std::move(headers)),
        geometry_(headers_.current().geometry) {}

  Task<CheckResult> run();

 private:
  Task<> check_headers();
  void remark_state();
  Task<> check_base();
  Task<> check_top();
  Task<> check_pages();
  Task<> check_page(uint64_t page);
  // Clears bits that no granule has; how many there were.
  uint64_t strip(uint64_t page, Buffer& bits) const;
  void count_edges();

  CheckRequest request_;
  Disk& top_;
  Headers headers_;
  const Geometry geometry_;
  Buffer bits_;  // the top
  CheckResult result_;
};

Task<CheckResult> Checker::run() {
  result_.total_granules = geometry_.granules();
  if (request_.repair && !headers_.current().owner.host.empty())
    throw Error(EBUSY, top_.name() + " is attached by the host with the machine id " +
                           headers_.current().owner.host +
                           ", or was when that crashed: detach it there (after a crash, attach and "
                           "detach it) before it is repaired.");
  co_await check_headers();
  remark_state();
  co_await check_base();
  co_await check_top();
  co_await check_pages();
  count_edges();
  co_return result_;
}

Task<> Checker::check_headers() {
  for (size_t copy = 0; copy < 2; copy++) {
    if (headers_.problem(copy).empty()) continue;
    result_.findings.push_back("Header copy " + std::to_string(copy) + " is not valid: " +
                               headers_.problem(copy) + "; the other copy is good.");
    if (!request_.repair) {
      result_.leaks++;
      continue;
    }
    co_await headers_.write(top_, headers_.current());
    result_.leaks_fixed++;
    break;
  }
}

void Checker::remark_state() {
  const Header& header = headers_.current();
  if (!header.owner.host.empty())
    result_.findings.push_back("The store is attached by the host with the machine id " +
                               header.owner.host + ", or was when that crashed; this is harmless.");
  if (header.mode == Mode::transient)
    result_.findings.push_back("The store is transient: what it holds is worth nothing.");
}

Task<> Checker::check_base() {
  if (!request_.base) co_return;
  try {
    co_await require_base(top_.name(), headers_.current(), request_.base.get());
  } catch (const Error& error) {
    result_.errors++;
    result_.findings.push_back(error.what());
  }
}

Task<> Checker::check_top() {
  bits_.resize(geometry_.top_bytes());
  co_await top_.read_at(geometry_.top_offset, bits_);
  Buffer good = bits_;
  clear_bits(good, geometry_.pages(), bits_.size() * 8 - geometry_.pages());
  const uint64_t wrong = count_bits(bits_) - count_bits(good);
  if (wrong == 0) co_return;
  result_.findings.push_back("The bitmap names " + std::to_string(wrong) +
                             " pages beyond the end of the disk.");
  bits_ = std::move(good);
  if (!request_.repair) {
    result_.errors += wrong;
    co_return;
  }
  co_await top_.write_at(geometry_.top_offset, bits_);
  co_await top_.flush();
  result_.errors_fixed += wrong;
}

Task<> Checker::check_pages() {
  const uint64_t pages = geometry_.pages();
  const uint64_t present = count_bits(bits_);
  uint64_t done = 0;
  for (uint64_t page = 0; page < pages; page++) {
    if (!get_bit(bits_, page)) {
      page = run_end(bits_, page, pages) - 1;
      continue;
    }
    co_await check_page(page);
    if (request_.progress) request_.progress(++done, present);
  }
}

Task<> Checker::check_page(uint64_t page) {
  Buffer bits(kBlock);
  co_await top_.read_at(geometry_.page_offset(page), bits);
  const uint64_t wrong = strip(page, bits);
  result_.allocated_granules += count_bits(bits);
  if (wrong == 0) co_return;
  result_.findings.push_back("Page " + std::to_string(page) + " of the bitmap has " +
                             std::to_string(wrong) + " bits that stand for no granule.");
  if (!request_.repair) {
    result_.errors += wrong;
    co_return;
  }
  co_await top_.write_at(geometry_.page_offset(page), bits);
  co_await top_.flush();
  result_.errors_fixed += wrong;
}

uint64_t Checker::strip(uint64_t page, Buffer& bits) const {
  const uint64_t before = count_bits(bits);
  const uint32_t valid = geometry_.granules_in(page);
  clear_bits(bits, valid, kPageGranules - valid);
  for (const Region& region : regions_of(geometry_, headers_.current().base.size))
    if (region.kind == Region::Kind::edge && region.first / kPageGranules == page)
      clear_bits(bits, region.first % kPageGranules, 1);
  return before - count_bits(bits);
}

void Checker::count_edges() {
  for (const Region& region : regions_of(geometry_, headers_.current().base.size))
    if (region.kind == Region::Kind::edge) result_.allocated_granules++;
}

}  // namespace

Task<CheckResult> check(CheckRequest request) {
  Headers headers = co_await Headers::read(*request.top);
  try {
    require_room(*request.top, headers.current());
  } catch (const Error& error) {
    CheckResult result;
    result.errors = 1;
    result.findings.push_back(error.what());
    co_return result;
  }
  Checker checker(std::move(request), std::move(headers));
  co_return co_await checker.run();
}

}  // namespace cowd::dscow
