// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/dscow/header.hh"

#include <algorithm>
#include <cstring>

#include "formats/common/bytes.hh"
#include "formats/common/crc32c.hh"

namespace cowd::dscow {
namespace {

// Offsets in the block; docs/dscow.md has them as a table.
enum Field : size_t {
  kMagicAt = 0,
  kCrcAt = 8,
  kVersionAt = 12,
  kSequenceAt = 16,
  kCompatibleAt = 24,
  kReadOnlyAt = 32,
  kIncompatibleAt = 40,
  kSizeAt = 48,
  kTopAt = 56,
  kPagesAt = 64,
  kDataAt = 72,
  kGranuleAt = 80,
  kModeAt = 84,
  kStateAt = 88,
  kSampleCountAt = 92,
  kEpochAt = 96,
  kNonceAt = 104,
  kBaseSizeAt = 112,
  kBaseUuidAt = 120,
  kHostAt = 136,
  kBootAt = kHostAt + kIdSpan,
  kSamplesAt = kBootAt + kIdSpan,
  kStoreUuidAt = kSamplesAt + 4 * kSamples,
  kLocatorAt = 512,
};
static_assert(kStoreUuidAt + sizeof(Uuid) <= kLocatorAt);
static_assert(kLocatorAt + kLocatorSpan <= kBlock);

constexpr uint32_t kStateClean = 1;

uint32_t crc_of(std::span<const std::byte> block) {
  Buffer copy(block.begin(), block.end());
  store_le<uint32_t>(copy, kCrcAt, 0);
  return crc32c(copy);
}

void put_text(std::span<std::byte> block, size_t at, size_t span, const std::string& text) {
  std::memset(block.data() + at, 0, span);
  std::memcpy(block.data() + at, text.data(), std::min(text.size(), span - 1));
}

std::string get_text(std::span<const std::byte> block, size_t at, size_t span) {
  const char* text = reinterpret_cast<const char*>(block.data()) + at;
  return {text, strnlen(text, span - 1)};
}

Header fields_of(std::span<const std::byte> b) {
  Header h;
  h.sequence = load_le<uint64_t>(b, kSequenceAt);
  h.compatible = load_le<uint64_t>(b, kCompatibleAt);
  h.read_only = load_le<uint64_t>(b, kReadOnlyAt);
  h.incompatible = load_le<uint64_t>(b, kIncompatibleAt);
  h.geometry = {load_le<uint64_t>(b, kSizeAt), load_le<uint32_t>(b, kGranuleAt),
                load_le<uint64_t>(b, kTopAt), load_le<uint64_t>(b, kPagesAt),
                load_le<uint64_t>(b, kDataAt)};
  h.mode = static_cast<Mode>(load_le<uint32_t>(b, kModeAt));
  h.clean = load_le<uint32_t>(b, kStateAt) & kStateClean;
  h.epoch = load_le<uint64_t>(b, kEpochAt);
  h.owner = {get_text(b, kHostAt, kIdSpan), get_text(b, kBootAt, kIdSpan),
             load_le<uint64_t>(b, kNonceAt)};
  h.base.size = load_le<uint64_t>(b, kBaseSizeAt);
  std::copy_n(b.begin() + kBaseUuidAt, h.base.uuid.size(), h.base.uuid.begin());
  for (size_t i = 0; i < kSamples; i++)
    h.base.samples[i] = load_le<uint32_t>(b, kSamplesAt + 4 * i);
  std::copy_n(b.begin() + kStoreUuidAt, h.store.size(), h.store.begin());
  h.base_locator = get_text(b, kLocatorAt, kLocatorSpan);
  return h;
}

// What a version 1 header with features that we know may not say.
std::string problem_in(const Header& header, uint32_t samples) {
  if (header.incompatible != 0) return {};  // the rest may mean something else
  if (samples != kSamples) return "it counts " + std::to_string(samples) + " samples of the base";
  if (header.mode > Mode::transient) return "its mode is none that there is";
  return problem_with(header.geometry);
}

}  // namespace

const char* name_of(Mode mode) {
  switch (mode) {
    case Mode::unused: return "unused";
    case Mode::flush: return "flush";
    case Mode::always: return "always";
    case Mode::transient: return "transient";
  }
  return "unknown";
}

void encode(const Header& h, std::span<std::byte> b) {
  std::memcpy(b.data() + kMagicAt, kMagic.data(), kMagic.size());
  store_le<uint32_t>(b, kVersionAt, kVersion);
  store_le<uint64_t>(b, kSequenceAt, h.sequence);
  store_le<uint64_t>(b, kCompatibleAt, h.compatible);
  store_le<uint64_t>(b, kReadOnlyAt, h.read_only);
  store_le<uint64_t>(b, kIncompatibleAt, h.incompatible);
  store_le<uint64_t>(b, kSizeAt, h.geometry.size);
  store_le<uint64_t>(b, kTopAt, h.geometry.top_offset);
  store_le<uint64_t>(b, kPagesAt, h.geometry.pages_offset);
  store_le<uint64_t>(b, kDataAt, h.geometry.data_offset);
  store_le<uint32_t>(b, kGranuleAt, h.geometry.granule);
  store_le<uint32_t>(b, kModeAt, static_cast<uint32_t>(h.mode));
  store_le<uint32_t>(b, kStateAt, h.clean ? kStateClean : 0);
  store_le<uint32_t>(b, kSampleCountAt, kSamples);
  store_le<uint64_t>(b, kEpochAt, h.epoch);
  store_le<uint64_t>(b, kNonceAt, h.owner.nonce);
  store_le<uint64_t>(b, kBaseSizeAt, h.base.size);
  std::copy(h.base.uuid.begin(), h.base.uuid.end(), b.begin() + kBaseUuidAt);
  put_text(b, kHostAt, kIdSpan, h.owner.host);
  put_text(b, kBootAt, kIdSpan, h.owner.boot);
  for (size_t i = 0; i < kSamples; i++)
    store_le<uint32_t>(b, kSamplesAt + 4 * i, h.base.samples[i]);
  std::copy(h.store.begin(), h.store.end(), b.begin() + kStoreUuidAt);
  put_text(b, kLocatorAt, kLocatorSpan, h.base_locator);
  store_le<uint32_t>(b, kCrcAt, crc_of(b));
}

Decoded decode(std::span<const std::byte> block) {
  Decoded decoded;
  decoded.magic = std::memcmp(block.data() + kMagicAt, kMagic.data(), kMagic.size()) == 0;
  if (!decoded.magic) {
    decoded.problem = "it does not begin with the mark of a dscow store";
    return decoded;
  }
  decoded.version = load_le<uint32_t>(block, kVersionAt);
  if (load_le<uint32_t>(block, kCrcAt) != crc_of(block)) {
    decoded.problem = "its checksum is wrong";
    return decoded;
  }
  decoded.header = fields_of(block);
  if (decoded.version == kVersion)
    decoded.problem = problem_in(decoded.header, load_le<uint32_t>(block, kSampleCountAt));
  return decoded;
}

}  // namespace cowd::dscow
