// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/fuzz/guest.hh"

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>

#include "tests/fuzz/fail.hh"

namespace cowd::fuzz {
namespace {

constexpr uint64_t kSector = 512;
constexpr uint64_t kLarge = 4096 + 8;  // sectors, more than a block of most formats

uint64_t sum_of(std::span<const std::byte> bytes) {
  return std::hash<std::string_view>()({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

}  // namespace

Range Guest::range_of(const Operation& operation) const {
  if (sectors_ == 0) return {};
  const uint64_t sector = operation.at % sectors_ / unit_ * unit_;
  const uint64_t wanted = operation.sectors == 255 ? kLarge : operation.sectors + 1u;
  return {sector, std::min((wanted + unit_ - 1) / unit_ * unit_, sectors_ - sector)};
}

Task<> Guest::look(sim::KernelModel& kernel, std::span<const Operation> operations) {
  for (const Operation& each : operations) {
    const Range range = range_of(each);
    if (range.len == 0) continue;
    try {
      const sim::Bytes bytes = co_await kernel.read(range.sector, range.len);
      learn(range, bytes, true);
    } catch (const Error&) {
    }
  }
}

Task<bool> Guest::play(sim::KernelModel& kernel, std::span<const Operation> operations) {
  for (const Operation& each : operations) {
    const Range range = range_of(each);
    const auto code = static_cast<Code>(std::min<int>(each.code % kCodes, kWrite));
    if (range.len == 0) continue;
    bool failed = false;
    try {
      co_await play_one(kernel, code, range);
    } catch (const Error&) {
      failed = true;
    }
    if (failed && code == kReattach) co_return false;
    if (failed && code >= kDiscard) forget(range);
  }
  co_return true;
}

Task<> Guest::play_one(sim::KernelModel& kernel, Code code, Range range) {
  switch (code) {
    case kFlush:
      co_await kernel.flush();
      for (auto& [sector, known] : known_) known.flushed = true;
      break;
    case kTimer: co_await kernel.timer(); break;
    case kDiscard:
      forget(range);
      co_await kernel.discard(range);
      break;
    case kZero: {
      const sim::Bytes zeroes(range.len * kSector);
      learn(range, zeroes, false);
      co_await kernel.zero(range);
      break;
    }
    case kForget: kernel.forget(); break;
    case kReattach: co_await kernel.reattach(); break;
    case kWrite: co_await write(kernel, range); break;
    default: {
      const sim::Bytes bytes = co_await kernel.read(range.sector, range.len);
      compare(range, bytes);
    }
  }
}

Task<> Guest::write(sim::KernelModel& kernel, Range range) {
  sim::Bytes bytes(range.len * kSector);
  const uint64_t number = next_++;
  for (uint64_t i = 0; i < range.len; i++) {
    const uint64_t words[] = {range.sector + i, number};
    std::memcpy(bytes.data() + i * kSector, words, sizeof words);
  }
  learn(range, bytes, false);
  co_await kernel.write(range.sector, bytes);
}

Task<> Guest::verify(sim::KernelModel& kernel) const {
  for (auto at = known_.begin(); at != known_.end();) {
    Range range{at->first, 0};
    for (; at != known_.end() && at->first == range.end() && range.len < kLarge; ++at) range.len++;
    const sim::Bytes bytes = co_await kernel.read(range.sector, range.len);
    compare(range, bytes);
  }
}

void Guest::forget_unflushed() {
  std::erase_if(known_, [](const auto& each) { return !each.second.flushed; });
}

void Guest::forget(Range range) {
  known_.erase(known_.lower_bound(range.sector), known_.lower_bound(range.end()));
}

void Guest::learn(Range range, std::span<const std::byte> bytes, bool flushed) {
  for (uint64_t i = 0; i < range.len; i++)
    known_[range.sector + i] = {sum_of(bytes.subspan(i * kSector, kSector)), flushed};
}

void Guest::compare(Range range, std::span<const std::byte> bytes) const {
  if (damaged_) return;
  for (auto at = known_.lower_bound(range.sector); at != known_.end() && at->first < range.end();
       ++at) {
    const uint64_t sum = sum_of(bytes.subspan((at->first - range.sector) * kSector, kSector));
    require(sum == at->second.sum,
            "sector " + std::to_string(at->first) + " is not what the guest has written there");
  }
}

}  // namespace cowd::fuzz
