// SPDX-License-Identifier: GPL-2.0-or-later
// What images name, from a table of simulated files.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "formats/plugin.hh"
#include "tests/sim/sim_disk.hh"

namespace cowd::sim {

class Files : public References {
 public:
  using Opener = Task<std::unique_ptr<Image>> (*)(OpenRequest);
  // What images must say, and what opens it.
  explicit Files(std::map<std::string, Opener> formats) : formats_(std::move(formats)) {}
  Files(const std::string& format, Opener open) : formats_{{format, open}} {}

  std::map<std::string, std::shared_ptr<SimDisk>> disks;

  Task<std::shared_ptr<Disk>> disk(const Disk&, std::string path, bool) override {
    co_return find(path);
  }
  // Longer, as cowd makes it.
  Task<std::shared_ptr<Disk>> growing(const Disk&, std::string path, Room room) override {
    const std::shared_ptr<SimDisk> disk = find(path);
    const uint64_t bytes = co_await room(disk);
    if (bytes > disk->size()) disk->set_size(bytes / disk->block_size() * disk->block_size());
    co_return disk;
  }
  Task<std::shared_ptr<Disk>> make(const Disk& from, std::string path, bool force) override {
    if (disks.contains(path) && !force) throw Error(EEXIST, path + " is there already.");
    auto disk = std::make_shared<SimDisk>(path, 0, from.block_size(), false);
    disks[path] = disk;
    co_return disk;
  }
  Task<std::unique_ptr<Image>> image(const Disk&, std::string path, std::string format) override {
    const auto opener = formats_.find(format);
    if (opener == formats_.end()) throw Error(EINVAL, "another format: " + format);
    OpenRequest request;
    request.top = find(path);
    request.read_only = true;
    request.references = std::shared_ptr<References>(std::shared_ptr<void>(), this);
    co_return co_await opener->second(std::move(request));
  }

 private:
  std::shared_ptr<SimDisk> find(const std::string& path) {
    const auto found = disks.find(path);
    if (found == disks.end()) throw Error(ENOENT, path + " is not there.");
    return found->second;
  }

  std::map<std::string, Opener> formats_;
};

}  // namespace cowd::sim
