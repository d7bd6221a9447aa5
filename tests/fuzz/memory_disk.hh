// SPDX-License-Identifier: GPL-2.0-or-later
// A sparse disk in memory that holds its users to the rules of a Disk: what is not whole blocks
// of it is refused, as a device does, and so is what would take more memory than a fuzzer has.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>

#include "formats/plugin.hh"
#include "tests/fuzz/input.hh"

namespace cowd::fuzz {

class MemoryDisk : public Disk {
 public:
  MemoryDisk(std::string name, uint64_t size, uint32_t block_size)
      : name_(std::move(name)), size_(size), block_size_(block_size) {}
  // The image of an input; rounded up to whole blocks.
  MemoryDisk(std::string name, const Input& input);

  Task<> read_at(uint64_t offset, std::span<std::byte> out) override;
  Task<> write_at(uint64_t offset, std::span<const std::byte> in) override;
  Task<> flush() override { co_return; }
  Task<> resize(uint64_t bytes) override;
  uint64_t size() const override { return size_; }
  uint32_t block_size() const override { return block_size_; }
  bool read_only() const override { return read_only_; }
  const std::string& name() const override { return name_; }

  void set_read_only(bool value) { read_only_ = value; }
  std::shared_ptr<MemoryDisk> copy(const std::string& name) const;
  // Without I/O; zeroes behind the end, nothing is written there.
  void peek(uint64_t offset, std::span<std::byte> out) const;
  void poke(uint64_t offset, std::span<const std::byte> in);

 private:
  static constexpr uint64_t kChunk = 4096;
  static constexpr size_t kMaxChunks = 24 << 10;  // 96 MiB
  using Chunk = std::array<std::byte, kChunk>;
  void require_valid(uint64_t offset, uint64_t length) const;

  const std::string name_;
  uint64_t size_;
  const uint32_t block_size_;
  bool read_only_ = false;
  std::unordered_map<uint64_t, std::unique_ptr<Chunk>> chunks_;
};

}  // namespace cowd::fuzz
