// SPDX-License-Identifier: GPL-2.0-or-later
// What is done to every format over formats/growing: a guest over the model of the kernel, on an
// image in simulated files, with qemu-img as the judge of what is left.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tests/sim/files.hh"
#include "tests/sim/kernel_model.hh"
#include "tests/sim/run.hh"
#include "tests/sim/sim_disk.hh"

namespace cowd::sim {

// What a descriptor has, and what qemu-img calls the format.
struct GrowingFormat {
  std::string qemu;          // "vhdi": libvhdi is the judge
  bool qemu_checks = false;  // whether it knows to check it
  Task<> (*create)(CreateRequest) = nullptr;
  Task<std::unique_ptr<Image>> (*open)(OpenRequest) = nullptr;
  Task<CheckResult> (*check)(CheckRequest) = nullptr;
  Task<uint64_t> (*room)(std::shared_ptr<Disk>) = nullptr;
  Options options;    // of create
  bool large = true;  // also on disks with blocks of 4096 bytes
  // What its images name: their parent, and files that are made with them. Null: nothing.
  std::shared_ptr<Files> files = nullptr;
  Bytes beneath = {};  // what a new disk holds; empty: zeroes
};

// --- real files -------------------------------------------------------------

// A folder of its own for a test, gone with it.
class Folder {
 public:
  Folder();
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::vector<std::string> names() const;

 private:
  std::filesystem::path path_;
};

void write_file(const std::string& path, std::span<const std::byte> bytes);
Bytes read_file(const std::string& path);
// Of a disk: data that compresses, and holes.
Bytes some_content(uint64_t bytes, Random& random);
// A simulated file with the content of a real one, and the other way round.
std::shared_ptr<SimDisk> load(const std::string& path, uint32_t block_size = 512);
void save(const SimDisk& disk, const std::string& path);
// Runs a command; its output with a last line "exit N" if N is not 0.
std::string shell(const std::string& command);
// The image, as `image`, and what it names.
void save_all(const GrowingFormat& format, const SimDisk& top, const Folder& folder);
// The disk that the judge, qemu-img or what else the format says, finds in the image.
Bytes raw_by_others(const GrowingFormat& format, const SimDisk& disk);
std::string check_by_qemu(const GrowingFormat& format, const SimDisk& disk);

// How long the files are to be in the end.
struct Lengths {
  uint64_t top = 0;
  std::vector<Image::Length> others;
};

// --- images -----------------------------------------------------------------

std::shared_ptr<SimDisk> make_image(const GrowingFormat& format, uint64_t bytes,
                                    uint32_t block_size = 512, bool garbage = false);
// As cowd opens it.
KernelModel::Open opener(const GrowingFormat& format, std::shared_ptr<SimDisk> top,
                         Durability durability = Durability::flush, bool read_only = false,
                         std::shared_ptr<Lengths> used = nullptr);
// Makes the file as long as it may become; cuts it again.
void give_room(const GrowingFormat& format, SimDisk& top);
CheckResult check_of(const GrowingFormat& format, std::shared_ptr<Disk> top, bool repair = false);
// All of the disk, as our plugin reads it.
Bytes read_all(const GrowingFormat& format, std::shared_ptr<SimDisk> top);

// The image's files, the top first.
std::vector<std::shared_ptr<SimDisk>> disks_of(const GrowingFormat& format,
                                               const std::shared_ptr<SimDisk>& top);

// One image over its life.
struct Life {
  Life(const GrowingFormat& its_format, std::shared_ptr<SimDisk> disk, uint64_t seed,
       Durability durability = Durability::flush);
  void attach();
  void detach();
  // Its files to what is used.
  void cut();
  std::vector<std::shared_ptr<SimDisk>> disks() const { return disks_of(format, top); }

  const GrowingFormat& format;
  std::shared_ptr<SimDisk> top;
  std::shared_ptr<Lengths> used;
  KernelModel kernel;
};

// In whole `unit`s of sectors, which `part` has to be made of too.
Task<> play(Guest& guest, KernelModel& kernel, Random& random, Range part, int steps,
            uint64_t unit = 1);

// One guest, then two at once on files that answer late; perhaps a daemon that begins again.
void play_session(Life& life, Guest& guest, Random& random);

// --- what is tested of each -------------------------------------------------

// Random sequences with restarts, several guests at once, evictions; after each clean end the
// image is what qemu-img thinks it is, and nothing is left over.
void test_sequences(const GrowingFormat& format, uint64_t bytes, uint64_t seeds);
// The power is cut before every event. `otherwise`: of how many sequences (sequences.hh).
void test_crashes(const GrowingFormat& format, uint64_t bytes, uint64_t otherwise, int steps);
// The n-th operation fails, for every n.
void test_faults(const GrowingFormat& format, uint64_t bytes);
// What a crash leaves between blocks is given to others at the next attach, and only that.
void test_holes(const GrowingFormat& format, uint64_t bytes);
// A clean end leaves no file longer than it must be.
void test_length(const GrowingFormat& format, uint64_t bytes);
// Of an image that has everything, a pass takes at most a fault for each run of blocks in a row,
// and none comes after it.
void test_faults_of_a_full_image(const GrowingFormat& format, uint64_t bytes);
// A write that goes on while the daemon is killed is told to the next one without a mark.
void test_adopted(const GrowingFormat& format, uint64_t bytes);
// So is what is written to a block that the end of the disk cuts, and in parts.
void test_told_in_parts(const GrowingFormat& format, uint64_t bytes);
// What qemu-img and qemu-io make is read as they read it, and written to.
void test_foreign(const GrowingFormat& format, const std::string& create_options, uint64_t bytes,
                  bool writable);

// Images of which any sequence is played: as we make them, or as qemu-img does.
struct Variety {
  GrowingFormat format;
  uint64_t unit = 512;  // of the disk's size, in bytes
  uint64_t least = unit, most = 1 << 20;
  // Options of `qemu-img convert`, which begins them; where the format's options have a
  // backing_file, of `qemu-img create`.
  std::optional<std::string> convert = std::nullopt;
  // Says the format of the backing file, which qemu-img does not.
  Task<> (*rebase)(RebaseRequest) = nullptr;
};

// Short random sequences, each on a small image of the next variety; in the end of each the judge
// finds the same disk, the same map, and no errors or leaks. `otherwise`: how many (sequences.hh).
void test_differential(const std::vector<Variety>& varieties, uint64_t otherwise);

}  // namespace cowd::sim
