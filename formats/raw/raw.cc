// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/raw/raw.hh"

#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/options.hh"

namespace cowd::raw {
namespace {

void refuse_base(const Disk& top, const std::shared_ptr<Disk>& base) {
  if (base)
    throw Error(EINVAL, "A raw disk has no base, and " + base->name() + " is given as one for " +
                            top.name() + ": leave it out, or use the format dscow.");
}

}  // namespace

RawImage::RawImage(OpenRequest request) : request_(std::move(request)) {}

uint64_t RawImage::sectors() const { return request_.top->size() / 512; }

std::vector<Destination> RawImage::destinations() const {
  return {{request_.top.get(), !request_.read_only}};
}

uint32_t RawImage::discard_granularity() const { return request_.top->block_size(); }

std::vector<Answer> RawImage::initial() const {
  Extent extent;
  extent.range = {0, sectors()};
  extent.read = Side::at(0, 0);
  if (!request_.read_only) extent.write = extent.read;
  return {extent};
}

Task<std::vector<Answer>> RawImage::resolve(Range range, Access access) {
  require_within(range);
  if (access == Access::write && request_.read_only)
    throw Error(EROFS, request_.top->name() +
                           " is attached read-only: attach it for writing to write to it.");
  co_return initial();
}

void RawImage::promoted(const Promotion&) {}

Task<> RawImage::commit(uint64_t, bool data_flushed) {
  if (!data_flushed) co_await request_.top->flush();
}

Task<std::vector<Answer>> RawImage::discard(Range range) {
  co_return co_await resolve(range, Access::write);
}

Task<std::vector<Answer>> RawImage::zero(Range range) {
  co_return co_await resolve(range, Access::write);
}

Task<std::vector<MapEntry>> RawImage::map(Range range) {
  require_within(range);
  MapEntry entry;
  entry.range = range;
  entry.has_offset = true;
  entry.offset = range.sector * 512;
  entry.disk = request_.top->name();
  co_return std::vector<MapEntry>{entry};
}

Task<> RawImage::preserve() { return commit(0, false); }

Task<> RawImage::close() {
  if (!request_.read_only) co_await request_.top->flush();
}

nlohmann::json RawImage::stats() const { return nlohmann::json::object(); }

void RawImage::require_within(Range range) const {
  if (range.len == 0 || range.sector >= sectors() || range.len > sectors() - range.sector)
    throw Error(ERANGE, request_.top->name() + " has " + std::to_string(sectors()) + " sectors; " +
                            std::to_string(range.len) + " from " + std::to_string(range.sector) +
                            " on are not all in it.");
}

// Any disk is a raw image already: there is nothing to write.
Task<> create(CreateRequest request) {
  refuse_base(*request.top, request.base);
  refuse_others(request.options, "raw");
  if (request.size > request.top->size())
    throw Error(ENOSPC, request.top->name() + " is too small for a raw disk of " +
                            human_size(request.size) + ": it has " +
                            std::to_string(request.top->size()) + " bytes. Make it larger.");
  if (request.progress) request.progress(1, 1);
  co_return;
}

Task<std::unique_ptr<Image>> open(OpenRequest request) {
  refuse_base(*request.top, request.base);
  if (request.durability == Durability::transient)
    throw Error(EINVAL, request.top->name() +
                            " as a raw disk keeps what is written to it and cannot be transient: "
                            "use the format dscow with it as base.");
  if (request.top->size() == 0)
    throw Error(EINVAL, request.top->name() + " has no bytes: it cannot be a disk.");
  if (request.top->read_only() && !request.read_only)
    throw Error(EROFS,
                request.top->name() +
                    " cannot be written to: make it writable, or attach the disk read-only.");
  co_return std::make_unique<RawImage>(std::move(request));
}

Task<nlohmann::json> info(std::shared_ptr<Disk> top) {
  co_return nlohmann::json{{"format", "raw"}, {"virtual-size", top->size()}};
}

Task<CheckResult> check(CheckRequest request) {
  CheckResult result;
  result.findings.push_back(request.top->name() +
                            " is raw: it has no metadata that could be checked.");
  co_return result;
}

// A file is as long as its disk.
Task<> resize(ResizeRequest request) {
  Disk& top = *request.top;
  refuse_base(top, request.base);
  if (request.size == 0 || request.size % top.block_size() != 0)
    throw Error(EINVAL, top.name() + " has blocks of " + std::to_string(top.block_size()) +
                            " bytes; a raw disk there has one or more, and " +
                            std::to_string(request.size) + " bytes were asked for.");
  co_await top.resize(request.size);
  if (top.size() != request.size)
    throw Error(ENOTSUP, top.name() +
                             " is a device, and has the size that it has: use what made "
                             "it, such as lvreduce.");
  co_await top.flush();
}

}  // namespace cowd::raw
