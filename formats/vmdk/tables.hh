// SPDX-License-Identifier: GPL-2.0-or-later
// The extents of a VMDK after each other: flat ones, sparse ones, and such as are zeroes.
//
// Before the first write the image gets a new CID, so that an image on it that was made before
// is recognised as one whose parent has changed; and a sparse file that we write to is marked
// unclean until it is closed.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "formats/growing/space.hh"
#include "formats/growing/tables.hh"
#include "formats/vmdk/descriptor.hh"
#include "formats/vmdk/sparse.hh"

namespace cowd::vmdk {

struct Part {
  Range range;  // of the disk
  uint32_t dest = 0;
  uint64_t offset = 0;                   // sectors, of a flat one
  std::unique_ptr<SparseExtent> sparse;  // null: flat or zeroes
  bool zeroes = false;
  std::shared_ptr<Disk> disk;
};

// The text of an image and where it is in its file.
struct Text {
  uint64_t offset = 0;
  std::string text;
};

class Extents : public growing::Tables {
 public:
  Extents(std::shared_ptr<Disk> top, Descriptor descriptor, Text text, std::vector<Part> parts);

  uint64_t sectors() const override { return parts_.back().range.end(); }
  uint32_t block_sectors() const override { return block_; }
  growing::Home home_of(uint64_t block) const override;
  Task<std::vector<growing::Piece>> find(Range range) override;
  Task<> unpack(uint64_t block, std::span<std::byte> out) override;
  Task<> begin_writing() override;
  Task<> link(std::span<const growing::Link> links) override;
  Task<> finish(std::span<const uint64_t> ends) override;
  uint64_t used_bytes() const override { return used_bytes_; }
  std::vector<Image::Length> used_lengths() const override { return used_lengths_; }
  nlohmann::json stats() const override;

  const Descriptor& descriptor() const { return descriptor_; }
  std::vector<Part>& parts() { return parts_; }
  // That the file has to be cut to in the end though it is never written to by the engine.
  void set_text_bytes(uint64_t bytes) { used_bytes_ = bytes; }

 private:
  const Part& part_at(uint64_t sector) const;
  Task<> write_cid();
  Task<> mark_unclean(bool unclean);
  Task<> flush();

  const std::shared_ptr<Disk> top_;
  Descriptor descriptor_;
  Text text_;
  std::vector<Part> parts_;
  uint32_t block_ = 0;
  bool written_ = false;
  uint64_t used_bytes_ = 0;
  std::vector<Image::Length> used_lengths_;
};

}  // namespace cowd::vmdk
