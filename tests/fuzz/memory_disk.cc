// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/fuzz/memory_disk.hh"

#include <algorithm>

#include "formats/common/bytes.hh"

namespace cowd::fuzz {

MemoryDisk::MemoryDisk(std::string name, const Input& input)
    : name_(std::move(name)), block_size_(input.flags & kLargeBlocks ? 4096 : 512) {
  size_ = round_up(input.size, block_size_);
  for (const Patch& patch : input.patches) {
    const uint64_t offset = patch.offset & ~Patch::kFromEnd;
    if (!(patch.offset & Patch::kFromEnd))
      poke(offset, std::as_bytes(std::span(patch.bytes)));
    else if (offset <= size_)
      poke(size_ - offset, std::as_bytes(std::span(patch.bytes)));
  }
}

Task<> MemoryDisk::read_at(uint64_t offset, std::span<std::byte> out) {
  require_valid(offset, out.size());
  peek(offset, out);
  co_return;
}

Task<> MemoryDisk::write_at(uint64_t offset, std::span<const std::byte> in) {
  require_valid(offset, in.size());
  if (read_only_) throw Error(EROFS, name_ + " is read-only.");
  if (chunks_.size() > kMaxChunks) throw Error(ENOSPC, name_ + " has no more memory.");
  poke(offset, in);
  co_return;
}

Task<> MemoryDisk::resize(uint64_t bytes) {
  if (read_only_) throw Error(EROFS, name_ + " is read-only.");
  if (bytes > kMaxSize * 2) throw Error(EFBIG, name_ + " cannot be so long.");
  for (auto at = chunks_.begin(); at != chunks_.end();) {
    const uint64_t first = at->first * kChunk;
    if (first < bytes && first + kChunk > bytes)
      std::fill(at->second->begin() + static_cast<ptrdiff_t>(bytes - first), at->second->end(),
                std::byte{0});
    at = first >= bytes ? chunks_.erase(at) : std::next(at);
  }
  size_ = bytes;
  co_return;
}

std::shared_ptr<MemoryDisk> MemoryDisk::copy(const std::string& name) const {
  auto other = std::make_shared<MemoryDisk>(name, size_, block_size_);
  for (const auto& [index, chunk] : chunks_)
    other->chunks_.emplace(index, std::make_unique<Chunk>(*chunk));
  return other;
}

void MemoryDisk::peek(uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const uint64_t within = offset % kChunk;
    const size_t part = std::min<uint64_t>(out.size(), kChunk - within);
    const auto found = chunks_.find(offset / kChunk);
    if (found == chunks_.end())
      std::fill_n(out.begin(), part, std::byte{0});
    else
      std::copy_n(found->second->begin() + within, part, out.begin());
    out = out.subspan(part);
    offset += part;
  }
}

void MemoryDisk::poke(uint64_t offset, std::span<const std::byte> in) {
  if (offset >= size_) return;
  in = in.first(std::min<uint64_t>(in.size(), size_ - offset));
  while (!in.empty()) {
    const uint64_t within = offset % kChunk;
    const size_t part = std::min<uint64_t>(in.size(), kChunk - within);
    const auto some = in.first(part);
    auto found = chunks_.find(offset / kChunk);
    const bool zeroes = std::ranges::all_of(some, [](std::byte b) { return b == std::byte{0}; });
    if (found == chunks_.end() && !zeroes)
      found = chunks_.emplace(offset / kChunk, std::make_unique<Chunk>()).first;
    if (found != chunks_.end()) std::copy_n(some.begin(), part, found->second->begin() + within);
    in = in.subspan(part);
    offset += part;
  }
}

void MemoryDisk::require_valid(uint64_t offset, uint64_t length) const {
  if (offset % block_size_ != 0 || length % block_size_ != 0 || length == 0 || offset > size_ ||
      length > size_ - offset)
    throw Error(EINVAL, name_ + ": bytes " + std::to_string(offset) + " to " +
                            std::to_string(offset + length) + " are no whole blocks of it.");
}

}  // namespace cowd::fuzz
