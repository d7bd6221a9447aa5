// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/system/pattern.hh"

#include <algorithm>
#include <array>
#include <cstring>

namespace {

constexpr uint64_t kMagic = 0x64616f6c6b636f6c;
constexpr size_t kWords = kSector / sizeof(uint64_t);
using Words = std::array<uint64_t, kWords>;

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

Words make_words(uint64_t number, uint32_t version, uint64_t seed) {
  Words words{};
  if (!version) return words;
  words[0] = kMagic;
  words[1] = number;
  words[2] = version;
  uint64_t word = mix(seed ^ mix(number + 1) ^ mix(uint64_t{version} << 32));
  for (size_t i = 3; i < kWords; i++) words[i] = word += 0x9e3779b97f4a7c15;
  return words;
}

}  // namespace

void fill_sector(std::byte* sector, uint64_t number, uint32_t version, uint64_t seed) {
  const Words words = make_words(number, version, seed);
  memcpy(sector, words.data(), kSector);
}

bool is_sector(const std::byte* sector, uint64_t number, uint32_t version, uint64_t seed) {
  const Words words = make_words(number, version, seed);
  return memcmp(sector, words.data(), kSector) == 0;
}

std::string describe_sector(const std::byte* sector) {
  Words words;
  memcpy(words.data(), sector, kSector);
  if (std::all_of(words.begin(), words.end(), [](uint64_t word) { return word == 0; }))
    return "zeroes";
  if (words[0] != kMagic) return "bytes of nobody we know";
  return "version " + std::to_string(words[2]) + " of sector " + std::to_string(words[1]);
}
