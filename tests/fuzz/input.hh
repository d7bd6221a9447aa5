// SPDX-License-Identifier: GPL-2.0-or-later
// What a fuzzer of a format gets: an image as its length and the few bytes in it that are not
// zero, so that a large image is a small input, and what is done with it. Every sequence of
// bytes is an input.
//
//   byte 0      flags, see below
//   byte 1      how many operations there are; 8 bytes each follow the length
//   bytes 2-7   length of the image, bytes
//   then the operations, then patches to the end of the input: 6 bytes offset, 2 bytes length,
//   the bytes. An offset with its highest bit set counts from the end of the image.
//
// Integers are little endian.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace cowd::fuzz {

enum Flag : uint8_t {
  kLargeBlocks = 1,   // the disk has blocks of 4096 bytes
  kPutRight = 2,      // checksums are put right, where the format has some
  kAlways = 4,        // durability=always
  kTransient = 8,     // or transient
  kWithBase = 16,     // a base is given, to a format that wants one
  kLeaveRunning = 32  // the last session is not closed, as when cowd is killed
};

struct Operation {
  uint8_t code = 0;
  uint8_t sectors = 0;  // one less than are meant
  uint64_t at = 0;      // sector, taken modulo those of the disk; 48 bits
};

struct Patch {
  static constexpr uint64_t kFromEnd = uint64_t{1} << 47;
  uint64_t offset = 0;
  std::vector<uint8_t> bytes;
};

struct Input {
  uint8_t flags = 0;
  uint64_t size = 0;
  std::vector<Operation> operations;
  std::vector<Patch> patches;
};

inline constexpr size_t kMaxOperations = 24;
inline constexpr size_t kMaxPatch = 65535;
inline constexpr uint64_t kMaxSize = (uint64_t{1} << 47) - 4096;

Input decode(std::span<const uint8_t> bytes);
std::vector<uint8_t> encode(const Input& input);

}  // namespace cowd::fuzz
