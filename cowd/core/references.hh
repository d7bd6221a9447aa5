// SPDX-License-Identifier: GPL-2.0-or-later
// What an image names (backing file, data file, extents), opened for it by the rules of
// docs/references.md: regular files beneath the image's own folder or a configured root, no
// symbolic links, nothing twice in a chain.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cowd/core/backing.hh"
#include "cowd/core/plugin_loader.hh"
#include "formats/plugin.hh"

namespace cowd {

// Roots: absolute paths of folders. Set once, before the first image is opened.
void set_reference_roots(std::vector<std::string> roots);

class Fd;
struct FoundFile;

// Of one chain. Used on the strand of its image; what may block runs elsewhere.
class FileReferences : public References, public std::enable_shared_from_this<FileReferences> {
 public:
  enum class Purpose {
    tool,      // files as they are
    attach,    // behind loop devices, for a dm table
    reattach,  // behind the loop devices that a dm table has
  };
  // Throws Error(EBUSY) where another disk uses the file in a way that does not go with it.
  using Claim = std::function<Task<>(Component file, bool writable)>;
  // `top`: what names the first of them, opened from `component`. `claim` may be empty. All
  // images opened here share `metadata_cache` bytes of memory.
  FileReferences(std::shared_ptr<AsyncIo> io, PluginLoader* plugins, Purpose purpose,
                 const Component& component, const std::shared_ptr<Disk>& top, Claim claim = {},
                 uint64_t metadata_cache = kMetadataCache);
  // What was made and not kept goes again.
  ~FileReferences() override;

  Task<std::shared_ptr<Disk>> disk(const Disk& from, std::string path, bool writable) override;
  Task<std::unique_ptr<Image>> image(const Disk& from, std::string path,
                                     std::string format) override;
  Task<std::shared_ptr<Disk>> growing(const Disk& from, std::string path, Room room) override;
  Task<std::shared_ptr<Disk>> make(const Disk& from, std::string path, bool force) override;

  // The rest may block: off the strands, and never two at a time.
  // Makes the file of a disk from growing() `bytes` long, if it is longer.
  void cut(const Disk* disk, uint64_t bytes) const;
  // After an attach that failed: files that were made longer get the length they had, unless
  // something was written behind it.
  void restore_lengths() const;
  void keep_made() { made_.clear(); }

  // Where in a dm table a disk opened here is; null for a disk that was not.
  const Backing* backing_of(const Disk* disk) const;

  static constexpr size_t kMostFiles = 62;  // a dm table has 64 destinations

 private:
  struct File {
    std::shared_ptr<Backing> backing;
    std::string folder;  // absolute; empty: it names nothing beneath it (a device)
    dev_t device = 0;
    ino_t inode = 0;
    bool odd = false;           // does not end with a sector
    std::shared_ptr<Fd> grows;  // of growing()
    uint64_t grown_from = 0;    // bytes; 0: it has the length that it had
  };
  struct Made {
    std::shared_ptr<Fd> folder;
    std::string name;
  };
  const File& file_of(const Disk& disk) const;
  Task<std::shared_ptr<Disk>> open(const Disk& from, std::string path, bool writable, Room room);
  Task<std::shared_ptr<Disk>> base_of(const FormatDescriptor& plugin, std::shared_ptr<Disk> top);
  void require_one_more(const std::string& from, const std::string& path) const;
  std::vector<std::pair<dev_t, ino_t>> taken() const;
  static File file_from(const FoundFile& found);
  Task<uint64_t> make_room(FoundFile found, Room room);

  std::shared_ptr<AsyncIo> io_;
  PluginLoader* plugins_;
  Purpose purpose_;
  Claim claim_;
  uint64_t metadata_cache_;  // left for the next image
  std::vector<std::pair<const Disk*, File>> files_;
  std::vector<Made> made_;
};

}  // namespace cowd
