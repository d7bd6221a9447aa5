// SPDX-License-Identifier: GPL-2.0-or-later
// Images of every plugin on simulated disks, used without a kernel, and chains of them.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cowd/core/image_commit.hh"
#include "cowd/core/plugin_loader.hh"
#include "tests/sim/growing_world.hh"
#include "tests/sim/run.hh"
#include "tests/sim/sim_disk.hh"

namespace cowd::sim {

// As cowd loads it.
const FormatDescriptor& plugin(const std::string& name);
// What qemu-img calls the format.
std::string qemu_name(const std::string& format);

// --- the power of a machine with several disks ---------------------------------------------

struct Power {
  uint64_t left = UINT64_MAX;  // operations until it goes
  uint64_t used = 0;
};

// A disk of such a machine.
class PoweredDisk : public Disk {
 public:
  PoweredDisk(std::shared_ptr<SimDisk> disk, Power& power)
      : disk_(std::move(disk)), power_(power) {}
  Task<> read_at(uint64_t offset, std::span<std::byte> out) override;
  Task<> write_at(uint64_t offset, std::span<const std::byte> in) override;
  Task<> flush() override;
  Task<> resize(uint64_t bytes) override;
  uint64_t size() const override { return disk_->size(); }
  uint32_t block_size() const override { return disk_->block_size(); }
  bool read_only() const override { return disk_->read_only(); }
  const std::string& name() const override { return disk_->name(); }

 private:
  void spend();
  const std::shared_ptr<SimDisk> disk_;
  Power& power_;
};

// --- images --------------------------------------------------------------------------------

// What images name, by the names they use.
class Chain : public References {
 public:
  std::map<std::string, std::shared_ptr<Disk>> disks;
  // What this one names is only stood in for, as in a commit.
  const Disk* committed = nullptr;
  std::string path, format;  // what it named

  Task<std::shared_ptr<Disk>> disk(const Disk& from, std::string name, bool writable) override;
  Task<std::unique_ptr<Image>> image(const Disk& from, std::string name,
                                     std::string its_format) override;
};

struct Parts {
  std::string format;
  std::shared_ptr<Disk> top;
  std::shared_ptr<Disk> base = nullptr;  // dscow's
  std::shared_ptr<References> chain = nullptr;
};

// A file in which an image of the format was made; zeroes where nothing is.
std::shared_ptr<SimDisk> make(const std::string& name, const std::string& format, uint64_t bytes,
                              const Options& options = {}, Parts beneath = {},
                              uint32_t block_size = 512);
// Makes room first if it is to be written to.
Task<std::unique_ptr<Image>> open(Parts parts, bool to_write);
// Closes it, and cuts the file to what is used.
Task<> close(std::unique_ptr<Image> image, std::shared_ptr<Disk> disk);

// All of the disk; through our own image.
Bytes bytes_of(Parts parts);
// Writes random data in random places, in whole `unit`s of bytes; `model` follows.
Task<> scribble(Image& image, Random& random, int writes, Bytes& model, uint64_t unit = 512);
CheckResult check(Parts parts);

// Commits as cowctl does; the base of `parts.top` is found in `chain`.
Task<CommitCounts> commit(Parts parts, std::shared_ptr<Chain> chain, bool empty = true);

// The disk that qemu-img finds in images[0], which may name the others by their names.
Bytes by_qemu(const std::vector<std::shared_ptr<SimDisk>>& images, const std::string& format);

}  // namespace cowd::sim
