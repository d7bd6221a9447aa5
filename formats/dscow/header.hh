// SPDX-License-Identifier: GPL-2.0-or-later
// The header of a dscow store: what it says and how it looks on disk.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "formats/common/signatures.hh"
#include "formats/dscow/layout.hh"

namespace cowd::dscow {

inline constexpr std::string_view kMagic("dscow\x1a\r\n", 8);
inline constexpr uint32_t kVersion = 1;
inline constexpr size_t kSamples = 32;
inline constexpr size_t kIdSpan = 64;         // bytes for a host or boot id, the final NUL included
inline constexpr size_t kLocatorSpan = 2048;  // bytes for the locator, the final NUL included

// Compatible feature: 'cowctl commit' is writing to the base, or was when it ended. The base is
// known by its size alone; who does not know this bit refuses it, as it has changed.
inline constexpr uint64_t kBaseChanges = 1 << 0;

// How the store was attached last. A store becomes transient or persistent
// with its first attach, and stays that.
enum class Mode : uint32_t { unused = 0, flush = 1, always = 2, transient = 3 };
const char* name_of(Mode mode);

// Enough to refuse a wrong base; no proof that it is the right one.
struct BaseIdentity {
  uint64_t size = 0;  // bytes; 0: the store has no base
  Uuid uuid{};
  std::array<uint32_t, kSamples> samples{};  // CRC-32C, see sample_offset()
  bool operator==(const BaseIdentity&) const = default;
};

// Who may write; nobody if host is empty.
struct Owner {
  std::string host;
  std::string boot;
  uint64_t nonce = 0;  // tells one take-over from another
  bool operator==(const Owner&) const = default;
};

struct Header {
  uint64_t sequence = 0;
  uint64_t compatible = 0;
  uint64_t read_only = 0;
  uint64_t incompatible = 0;
  Geometry geometry;
  Mode mode = Mode::unused;
  bool clean = true;
  uint64_t epoch = 0;  // grows with each change of owner
  Owner owner;
  BaseIdentity base;
  Uuid store{};  // of the store itself, as given at create; all zero: none was
  std::string base_locator;
  bool operator==(const Header&) const = default;
};

// Sets every field in one block, then its CRC. Other bytes stay: they may belong
// to a compatible feature that we do not know.
void encode(const Header& header, std::span<std::byte> block);

// What is wrong with a block: half a sentence; empty and `header` filled if it
// is a header of any version and any features.
struct Decoded {
  bool magic = false;    // looks like dscow at least
  uint32_t version = 0;  // valid if magic
  std::string problem;
  Header header;
};
Decoded decode(std::span<const std::byte> block);

}  // namespace cowd::dscow
