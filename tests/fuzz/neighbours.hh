// SPDX-License-Identifier: GPL-2.0-or-later
// The files beside an image under test, by the first letter of the name it has for them:
//
//   0        not there
//   s        the image itself, as another file with the same content
//   e        an empty file
//   others   192 KiB and 512 bytes that are all different
//
// They are made when they are asked for and keep what is written to them.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "tests/fuzz/memory_disk.hh"

namespace cowd::fuzz {

inline constexpr uint64_t kNeighbourBytes = (192 << 10) + 512;
// What "others" and bases hold.
void fill(MemoryDisk& disk);

class Neighbours : public References, public std::enable_shared_from_this<Neighbours> {
 public:
  explicit Neighbours(std::shared_ptr<MemoryDisk> self) : self_(std::move(self)) {}

  Task<std::shared_ptr<Disk>> disk(const Disk& from, std::string path, bool writable) override;
  Task<std::unique_ptr<Image>> image(const Disk& from, std::string path,
                                     std::string format) override;

 private:
  static constexpr int kMaxDepth = 4;
  std::shared_ptr<MemoryDisk> find(const std::string& path);

  const std::shared_ptr<MemoryDisk> self_;
  std::map<std::string, std::shared_ptr<MemoryDisk>> files_;
  int depth_ = 0;
};

}  // namespace cowd::fuzz
