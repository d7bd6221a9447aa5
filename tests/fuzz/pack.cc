// SPDX-License-Identifier: GPL-2.0-or-later
// Images to inputs of image.cc and back.
//
//   pack pack IMAGE INPUT [FLAGS [CODE:SECTORS:AT]...]   an input of an image
//   pack unpack INPUT IMAGE     the image of an input, as a sparse file, its operations told
//   pack base FILE              what the harness gives as base
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

#include "tests/fuzz/input.hh"
#include "tests/fuzz/neighbours.hh"

namespace cowd::fuzz {
namespace {

constexpr size_t kGap = 24;  // zeroes that are worth a patch of their own

std::vector<uint8_t> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const std::string& path, std::span<const uint8_t> bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw std::runtime_error(path + " cannot be written");
}

// What is not zero, in as few bytes as it takes. The last 512 bytes count from the end.
std::vector<Patch> patches_of(const std::vector<uint8_t>& image) {
  std::vector<Patch> patches;
  for (size_t at = 0; at < image.size();) {
    if (image[at] == 0) {
      at++;
      continue;
    }
    Patch patch;
    size_t end = at, zeroes = 0;
    const size_t tail =
        image.size() > 1024 && at < image.size() - 512 ? image.size() - 512 : image.size();
    for (; end < tail && zeroes < kGap && end - at < kMaxPatch; end++)
      zeroes = image[end] == 0 ? zeroes + 1 : 0;
    patch.bytes.assign(image.begin() + static_cast<ptrdiff_t>(at),
                       image.begin() + static_cast<ptrdiff_t>(end - zeroes));
    patch.offset =
        tail == image.size() && image.size() > 1024 ? Patch::kFromEnd | (image.size() - at) : at;
    patches.push_back(std::move(patch));
    at = end;
  }
  return patches;
}

Operation operation_of(const std::string& word) {
  unsigned code = 0, sectors = 0;
  unsigned long long at = 0;
  if (std::sscanf(word.c_str(), "%u:%u:%llu", &code, &sectors, &at) != 3)
    throw std::runtime_error(word + " is no CODE:SECTORS:AT");
  return {static_cast<uint8_t>(code), static_cast<uint8_t>(sectors - 1), at};
}

void pack(const std::string& image, const std::string& to, std::span<char*> words) {
  const std::vector<uint8_t> bytes = read_file(image);
  Input input;
  input.size = bytes.size();
  input.patches = patches_of(bytes);
  if (!words.empty()) input.flags = static_cast<uint8_t>(std::stoul(words[0]));
  for (size_t i = 1; i < words.size(); i++) input.operations.push_back(operation_of(words[i]));
  write_file(to, encode(input));
}

void unpack(const std::string& from, const std::string& image) {
  const Input input = decode(read_file(from));
  const MemoryDisk disk("image", input);
  const int file = open(image.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (file < 0 || ftruncate(file, static_cast<off_t>(disk.size())) < 0)
    throw std::runtime_error(image + " cannot be written");
  for (const Patch& patch : input.patches) {
    const uint64_t offset = patch.offset & ~Patch::kFromEnd;
    const uint64_t at = patch.offset & Patch::kFromEnd ? disk.size() - offset : offset;
    if (at >= disk.size()) continue;
    std::vector<std::byte> now(std::min<uint64_t>(patch.bytes.size(), disk.size() - at));
    disk.peek(at, now);
    if (pwrite(file, now.data(), now.size(), static_cast<off_t>(at)) < 0)
      throw std::runtime_error(image + " cannot be written");
  }
  close(file);
  std::printf("%llu bytes, flags %u\n", static_cast<unsigned long long>(disk.size()),
              unsigned{input.flags});
  for (const Operation& each : input.operations)
    std::printf("operation %u on %u sectors at %llu\n", unsigned{each.code}, each.sectors + 1u,
                static_cast<unsigned long long>(each.at));
}

void base(const std::string& to) {
  MemoryDisk disk("base", kNeighbourBytes, 512);
  fill(disk);
  std::vector<uint8_t> bytes(disk.size());
  disk.peek(0, std::as_writable_bytes(std::span(bytes)));
  write_file(to, bytes);
}

}  // namespace
}  // namespace cowd::fuzz

int main(int argc, char** argv) try {
  const std::string what = argc > 2 ? argv[1] : "";
  const std::span<char*> words(argv, static_cast<size_t>(argc));
  if (what == "pack" && argc > 3)
    cowd::fuzz::pack(argv[2], argv[3], words.subspan(4));
  else if (what == "unpack" && argc == 4)
    cowd::fuzz::unpack(argv[2], argv[3]);
  else if (what == "base" && argc == 3)
    cowd::fuzz::base(argv[2]);
  else
    throw std::runtime_error(
        "usage: pack pack IMAGE INPUT [FLAGS [CODE:SECTORS:AT]...], "
        "pack unpack INPUT IMAGE, pack base FILE");
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "pack: %s\n", error.what());
  return 1;
}
