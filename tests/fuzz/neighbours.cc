// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/fuzz/neighbours.hh"

#include <cstring>

#include "tests/fuzz/formats.hh"

namespace cowd::fuzz {

void fill(MemoryDisk& disk) {
  std::vector<std::byte> bytes(disk.size());
  uint64_t value = 1;
  for (size_t at = 0; at + 8 <= bytes.size(); at += 8) {
    value = (value ^ value >> 29) * 0xbf58476d1ce4e5b9 + 1;
    std::memcpy(bytes.data() + at, &value, 8);
  }
  disk.poke(0, bytes);
}

std::shared_ptr<MemoryDisk> Neighbours::find(const std::string& path) {
  if (path.empty() || path[0] == '0') throw Error(ENOENT, path + " is not there.");
  if (const auto found = files_.find(path); found != files_.end()) return found->second;
  if (files_.size() >= 62) throw Error(ELOOP, path + " is one file too many.");
  std::shared_ptr<MemoryDisk> made;
  if (path[0] == 's') {
    made = self_->copy(path);
  } else {
    made = std::make_shared<MemoryDisk>(path, path[0] == 'e' ? 0 : kNeighbourBytes, 512);
    fill(*made);
  }
  files_[path] = made;
  return made;
}

Task<std::shared_ptr<Disk>> Neighbours::disk(const Disk&, std::string path, bool) {
  co_return find(path);
}

Task<std::unique_ptr<Image>> Neighbours::image(const Disk&, std::string path, std::string format) {
  const FormatDescriptor* known = format_by_name(format);
  if (!known) throw Error(EINVAL, path + " has a format that is not there: " + format);
  if (depth_ >= kMaxDepth) throw Error(ELOOP, path + " is one image too many.");
  OpenRequest request;
  request.top = find(path);
  request.read_only = true;
  request.references = shared_from_this();
  request.host_id = request.boot_id = "here";
  depth_++;
  struct Leave {
    int& depth;
    ~Leave() { depth--; }
  };
  const Leave leave{depth_};
  std::unique_ptr<Image> image = co_await known->open(std::move(request));
  co_return image;
}

}  // namespace cowd::fuzz
