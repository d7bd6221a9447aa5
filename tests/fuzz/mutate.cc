// SPDX-License-Identifier: GPL-2.0-or-later
// How inputs of image.cc are changed: most often a field of a structure that is there gets a
// number that means something in this image, such as where another structure is.
#include <algorithm>
#include <cstring>
#include <random>

#include "formats/common/bytes.hh"
#include "tests/fuzz/input.hh"

extern "C" {
size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed);
}

namespace cowd::fuzz {
namespace {

class Mutation {
 public:
  Mutation(Input& input, unsigned seed) : input_(input), random_(seed) {}

  void make() {
    switch (any(16)) {
      case 0: change_size(); break;
      case 1: input_.flags = static_cast<uint8_t>(input_.flags ^ 1 << any(8)); break;
      case 2:
      case 3: change_operations(); break;
      case 4: add_patch(); break;
      case 5: drop_patch(); break;
      case 6: move_patch(); break;
      case 7:
      case 8: change_bytes(); break;
      default: change_field();
    }
  }

 private:
  uint64_t any(uint64_t below) { return random_() % below; }
  Patch* a_patch() {
    return input_.patches.empty() ? nullptr : &input_.patches[any(input_.patches.size())];
  }

  // A place, a length or a count that this image has, or one at the edge of what integers can be.
  uint64_t a_number() {
    const Patch* patch = a_patch();
    uint64_t number = patch ? patch->offset & ~Patch::kFromEnd : 0;
    switch (any(8)) {
      case 0: number = input_.size; break;
      case 1: number = uint64_t{1} << any(64); break;
      case 2: number = ~uint64_t{0} >> any(64); break;
      case 3: number = any(256); break;
      default: break;
    }
    switch (any(8)) {
      case 0: number++; break;
      case 1: number--; break;
      case 2: number *= 2; break;
      case 3: number = round_down(number, 4096); break;
      default: break;
    }
    return any(2) ? number / 512 : number;
  }

  void change_field() {
    Patch* patch = a_patch();
    if (!patch || patch->bytes.empty()) return;
    const size_t width = size_t{1} << any(4);
    if (patch->bytes.size() < width) return;
    const size_t at = round_down(any(patch->bytes.size() - width + 1), any(4) ? width : 1);
    const bool big = any(2);
    uint64_t value = 0;
    for (size_t i = 0; i < width; i++)
      value |= uint64_t{patch->bytes[at + i]} << 8 * (big ? width - 1 - i : i);
    switch (any(4)) {
      case 0: value += any(17) - 8; break;
      case 1: value ^= uint64_t{1} << any(8 * width); break;
      default: value = a_number();
    }
    for (size_t i = 0; i < width; i++)
      patch->bytes[at + i] = static_cast<uint8_t>(value >> 8 * (big ? width - 1 - i : i));
  }

  void change_bytes() {
    Patch* patch = a_patch();
    if (!patch) return;
    const size_t most = std::min(kMaxPatch, patch->bytes.size() + 64);
    const size_t length = patch->bytes.size();
    patch->bytes.resize(most);
    patch->bytes.resize(LLVMFuzzerMutate(patch->bytes.data(), length, most));
  }

  void change_size() { input_.size = any(4) ? a_number() : input_.size + any(8192) - 4096; }

  void change_operations() {
    if (input_.operations.empty() || (any(3) == 0 && input_.operations.size() < kMaxOperations)) {
      input_.operations.push_back({static_cast<uint8_t>(any(256)),
                                   static_cast<uint8_t>(any(8) ? any(32) : 255), a_number()});
      return;
    }
    const size_t which = any(input_.operations.size());
    Operation& operation = input_.operations[which];
    switch (any(5)) {
      case 0: operation.code = static_cast<uint8_t>(any(256)); break;
      case 1: operation.sectors = static_cast<uint8_t>(any(256)); break;
      case 2: operation.at = any(256); break;
      case 3: operation.at = a_number(); break;
      default: input_.operations.erase(input_.operations.begin() + static_cast<ptrdiff_t>(which));
    }
  }

  void add_patch() {
    Patch patch;
    if (const Patch* like = a_patch()) patch.bytes = like->bytes;
    patch.bytes.resize(std::min<size_t>(patch.bytes.size(), 512));
    if (patch.bytes.empty()) patch.bytes.resize(64);
    patch.offset = a_number() & 0xffffffffffff;
    input_.patches.push_back(std::move(patch));
  }

  void drop_patch() {
    if (input_.patches.size() < 2) return;
    input_.patches.erase(input_.patches.begin() +
                         static_cast<ptrdiff_t>(any(input_.patches.size())));
  }

  void move_patch() {
    if (Patch* patch = a_patch()) patch->offset = a_number() & 0xffffffffffff;
  }

  Input& input_;
  std::mt19937_64 random_;
};

}  // namespace
}  // namespace cowd::fuzz

size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  if (seed % 8 == 0) return LLVMFuzzerMutate(data, size, max_size);
  cowd::fuzz::Input input = cowd::fuzz::decode({data, size});
  for (unsigned i = 0; i <= seed / 8 % 3; i++) cowd::fuzz::Mutation(input, seed + i).make();
  const std::vector<uint8_t> bytes = cowd::fuzz::encode(input);
  const size_t length = std::min(bytes.size(), max_size);
  std::memcpy(data, bytes.data(), length);
  return length;
}
