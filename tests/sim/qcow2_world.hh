// SPDX-License-Identifier: GPL-2.0-or-later
// qcow2 images on simulated disks, in files for qemu-img, and what such images name.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "formats/qcow2/operations.hh"
#include "tests/sim/kernel_model.hh"
#include "tests/sim/run.hh"
#include "tests/sim/sim_disk.hh"

namespace cowd::sim {

inline constexpr uint64_t kKiB = 1ULL << 10, kMiB = 1ULL << 20, kGiB = 1ULL << 30;

// The files that images may name, by the name they use; raw or qcow2.
class FakeReferences : public References {
 public:
  void add(const std::string& name, std::shared_ptr<SimDisk> disk) { disks_[name] = disk; }
  Task<std::shared_ptr<Disk>> disk(const Disk& from, std::string path, bool writable) override;
  Task<std::unique_ptr<Image>> image(const Disk& from, std::string path,
                                     std::string format) override;

 private:
  std::map<std::string, std::shared_ptr<SimDisk>> disks_;
};

// A folder that goes with the object.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::string path(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Runs a program with its output in `output`; returns its exit status.
int run_program(std::vector<std::string> words, std::string* output = nullptr);

void save(const SimDisk& disk, const std::string& path);
// Zeroes behind the end; as long as room() says if it is to be written to.
std::shared_ptr<SimDisk> load(const std::string& path, bool to_write, uint32_t block_size = 512);
// Makes a disk as long as cowd does before it attaches it.
void make_room(const std::shared_ptr<SimDisk>& disk);

std::shared_ptr<SimDisk> make_qcow2(uint64_t size, const Options& options = {},
                                    std::shared_ptr<References> references = nullptr,
                                    uint32_t block_size = 512);

OpenRequest qcow2_request(std::shared_ptr<Disk> top,
                          std::shared_ptr<References> references = nullptr);
KernelModel::Open qcow2_opener(std::shared_ptr<Disk> top,
                               std::shared_ptr<References> references = nullptr,
                               Durability durability = Durability::flush);

CheckResult check_qcow2(std::shared_ptr<Disk> disk, bool repair = false);
// qemu-img check of a copy, its data file an empty one: exit status 0 none, 3 leaks, 2 errors; what
// it says in `output`. `repair`: what it can mend is none.
int qemu_check(const SimDisk& disk, std::string* output = nullptr, bool repair = false);
// All bytes of the disk in the image, as qemu-img reads them.
Bytes qemu_bytes(const std::string& path, const std::string& format = "qcow2");
Bytes read_file(const std::string& path);

// The same by our image, opened read-only.
Bytes image_bytes(std::shared_ptr<Disk> top, std::shared_ptr<References> references = nullptr);

struct Shape {
  uint64_t size;
  Options options;
  uint64_t base;  // bytes of a raw backing file; 0: none
  uint32_t block_size = 512;
};

// Cluster sizes, versions, refcount widths, bases shorter and longer than the disk, subclusters,
// data files.
const std::vector<Shape>& qcow2_shapes();

// A new image of a shape, attached, and a guest that does anything to it.
struct Qcow2World {
  // `data_file`: where the data is to be, of a shape that has it in a file of its own.
  Qcow2World(const Shape& shape, uint64_t seed, Durability durability = Durability::flush,
             std::shared_ptr<SimDisk> data_file = nullptr);
  bool is_raw() const;  // the data file is the disk

  Range somewhere(Range part, uint64_t most);
  Task<> step(Range part);
  Task<> play(Range part, int steps);

  std::shared_ptr<FakeReferences> references;
  Random random;
  std::shared_ptr<SimDisk> top;
  std::shared_ptr<SimDisk> data;  // the data file, if it has one
  std::unique_ptr<KernelModel> kernel;
  std::unique_ptr<Guest> guest;
  uint64_t align = 1;  // of what the guest does, in sectors
};

}  // namespace cowd::sim
