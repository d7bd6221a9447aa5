// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/fuzz/input.hh"

#include <algorithm>

namespace cowd::fuzz {
namespace {

class Reader {
 public:
  explicit Reader(std::span<const uint8_t> bytes) : bytes_(bytes) {}
  uint64_t number(size_t bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; i++)
      value |= uint64_t{i < bytes_.size() ? bytes_[i] : 0u} << 8 * i;
    skip(bytes);
    return value;
  }
  std::vector<uint8_t> take(size_t bytes) {
    const auto some = bytes_.first(std::min(bytes, bytes_.size()));
    skip(bytes);
    return {some.begin(), some.end()};
  }
  bool empty() const { return bytes_.empty(); }

 private:
  void skip(size_t bytes) { bytes_ = bytes_.subspan(std::min(bytes, bytes_.size())); }

  std::span<const uint8_t> bytes_;
};

void put(std::vector<uint8_t>& out, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) out.push_back(static_cast<uint8_t>(value >> 8 * i));
}

}  // namespace

Input decode(std::span<const uint8_t> bytes) {
  Reader reader(bytes);
  Input input;
  input.flags = static_cast<uint8_t>(reader.number(1));
  const size_t operations = reader.number(1) % (kMaxOperations + 1);
  input.size = std::min(reader.number(6), kMaxSize);
  for (size_t i = 0; i < operations; i++) {
    Operation operation;
    operation.code = static_cast<uint8_t>(reader.number(1));
    operation.sectors = static_cast<uint8_t>(reader.number(1));
    operation.at = reader.number(6);
    input.operations.push_back(operation);
  }
  while (!reader.empty()) {
    Patch patch;
    patch.offset = reader.number(6);
    const uint64_t length = reader.number(2);
    patch.bytes = reader.take(length);
    input.patches.push_back(std::move(patch));
  }
  return input;
}

std::vector<uint8_t> encode(const Input& input) {
  std::vector<uint8_t> out;
  put(out, input.flags, 1);
  put(out, input.operations.size(), 1);
  put(out, input.size, 6);
  for (const Operation& operation : input.operations) {
    put(out, operation.code, 1);
    put(out, operation.sectors, 1);
    put(out, operation.at, 6);
  }
  for (const Patch& patch : input.patches) {
    put(out, patch.offset, 6);
    put(out, patch.bytes.size(), 2);
    out.insert(out.end(), patch.bytes.begin(), patch.bytes.end());
  }
  return out;
}

}  // namespace cowd::fuzz
