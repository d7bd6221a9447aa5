// SPDX-License-Identifier: GPL-2.0-or-later
// The contract between cowd (or cowctl) and a format plugin.
//
// A plugin is a shared object, <plugin dir>/<name>.so, that exports one symbol,
// cowd_format, of type FormatDescriptor. The descriptor begins with its own ABI
// number and size; fields are only ever added at its end.
//
// Units: "sector" and "len" are 512-byte sectors of the virtual disk or of a
// destination; "offset" and "bytes" are bytes. All coroutines of one image run
// on one strand, never two at a time between suspension points; several may be
// suspended in I/O at once, so an image must expect resolve() while commit() waits.
// Errors are thrown as cowd::Error (core/error.hh): an errno and a sentence.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cowd/core/error.hh"

namespace cowd {

template <typename T = void>
using Task = boost::asio::awaitable<T>;

// A run of virtual sectors.
struct Range {
  uint64_t sector = 0;
  uint64_t len = 0;
  uint64_t end() const { return sector + len; }
  bool operator==(const Range&) const = default;
};

// What lies under an image, as its metadata code sees it: a block device, or a
// simulated one in tests. Offsets and sizes are multiples of block_size().
// Several requests may be under way; none is ordered before another, and none is
// durable before a flush() that was begun after its completion has completed.
class Disk {
 public:
  virtual ~Disk() = default;
  virtual Task<> read_at(uint64_t offset, std::span<std::byte> out) = 0;
  virtual Task<> write_at(uint64_t offset, std::span<const std::byte> in) = 0;
  virtual Task<> flush() = 0;
  // write_at(), and durable when it ends; what was written before need not be.
  virtual Task<> write_durably(uint64_t offset, std::span<const std::byte> in) {
    co_await write_at(offset, in);
    co_await flush();
  }
  virtual uint64_t size() const = 0;        // bytes
  virtual uint32_t block_size() const = 0;  // bytes, the unit that is written at once: 512 or 4096
  virtual bool read_only() const = 0;
  virtual const std::string& name() const = 0;  // for sentences: "/dev/vg/cow"
  // Makes it `bytes` long, more or less than it was; new bytes read as zeroes. Throws
  // Error(ENOSPC) where it cannot be made larger (a device), and then nothing has changed;
  // a device stays as it is where it would become smaller.
  virtual Task<> resize(uint64_t bytes) {
    if (bytes > size())
      throw Error(ENOSPC, name() + " has " + std::to_string(size()) + " bytes and " +
                              std::to_string(bytes) + " are needed: make it larger.");
    co_return;
  }
  // When the file was last written to, as of opening: seconds since 1970; 0: not known.
  virtual int64_t modified() const { return 0; }
};

enum class Durability { flush, always, transient };

enum class Access { read, write, leaf };

// One side of an extent.
struct Side {
  enum class Kind : uint8_t { none, zero, disk } kind = Kind::none;
  uint32_t dest = 0;    // index into Image::destinations()
  uint64_t sector = 0;  // on that destination
  static Side fault() { return {}; }
  static Side zeroes() { return {Kind::zero, 0, 0}; }
  static Side at(uint32_t dest, uint64_t sector) { return {Kind::disk, dest, sector}; }
  bool operator==(const Side&) const = default;
};

// A mapping, as MAP of the uAPI header carries it.
struct Extent {
  Range range;
  Side read;
  Side write;
  uint32_t granule = 0;  // sectors; not 0: OVERLAY
  bool copy_first = false;
  bool sync = false;
  bool is_volatile = false;
  bool temporary = false;
  bool uncommitted = false;
};

// The promoted bits of one leaf of an overlay extent; bit g of the string is
// granule g of the leaf, least significant bit first. Empty: none promoted.
struct Bitmap {
  Range range;  // the whole leaf
  std::vector<std::byte> bits;
  bool all = false;  // all promoted, bits is empty
};

// Bytes for a read that cannot be remapped.
struct Data {
  Range range;
  std::vector<std::byte> bytes;
};

using Answer = std::variant<Extent, Bitmap, Data>;

// What the kernel tells in PROMOTED.
struct Promotion {
  Range range;
  uint32_t dest = 0;
  uint64_t dest_sector = 0;
  uint64_t seq = 0;  // 0 if volatile
  bool replay = false;
};

// A destination of the dm table. Order is the index that sides use.
struct Destination {
  Disk* disk = nullptr;
  bool writable = false;
};

// A run of the virtual disk for `cowctl map`, in qemu-img map's terms.
struct MapEntry {
  Range range;
  int depth = 0;  // 0: this image, 1: its base
  bool present = true;
  bool zero = false;
  bool data = true;
  bool compressed = false;
  bool has_offset = false;
  uint64_t offset = 0;  // bytes into `disk`
  std::string disk;     // Disk::name() of where the bytes are; empty if nowhere
};

// Called now and then in long work with done and total, in any unit.
using Progress = std::function<void(uint64_t done, uint64_t total)>;

class Image;

// Opens what an image names: a backing file, a data file, extents. `path` is as the image
// has it, `from` the disk that names it. Only regular files beneath the folder of `from`, or
// beneath a configured root, are opened; devices, symbolic links, URIs and what is part of
// the chain already are refused with a sentence (docs/references.md). What was opened lives
// as long as what is returned.
class References {
 public:
  virtual ~References() = default;
  virtual Task<std::shared_ptr<Disk>> disk(const Disk& from, std::string path, bool writable) = 0;
  // Read-only, in the format that the image says; a name of a plugin, never empty.
  virtual Task<std::unique_ptr<Image>> image(const Disk& from, std::string path,
                                             std::string format) = 0;
  // How many bytes a file may come to need, as FormatDescriptor::room.
  using Room = std::function<Task<uint64_t>(std::shared_ptr<Disk>)>;
  // As disk() for writing, of a file that the image lets grow: it is asked for its room first,
  // as it is, and made so long (sparse) where a dm table will have it. used_lengths() cuts it
  // back.
  virtual Task<std::shared_ptr<Disk>> growing(const Disk& from, std::string path, Room room);
  // A new, empty file for what create makes, gone again if that fails. Throws Error(EEXIST) where
  // there is one, unless forced: then it is that one, emptied. Tools only.
  virtual Task<std::shared_ptr<Disk>> make(const Disk& from, std::string path, bool force);
};

inline Task<std::shared_ptr<Disk>> References::growing(const Disk& from, std::string path, Room) {
  co_return co_await disk(from, std::move(path), true);
}

inline Task<std::shared_ptr<Disk>> References::make(const Disk& from, std::string path, bool) {
  throw Error(EOPNOTSUPP, from.name() + " would have a part in " + path +
                              ", and files are not made here: use cowctl create.");
  co_return nullptr;
}

// An open virtual disk.
class Image {
 public:
  virtual ~Image() = default;
  virtual uint64_t sectors() const = 0;
  virtual std::vector<Destination> destinations() const = 0;
  // Discard granularity to advertise, in bytes; 0: discards are not useful here.
  virtual uint32_t discard_granularity() const = 0;
  // Mappings that can be pushed before the first fault. Asked after replay.
  virtual std::vector<Answer> initial() const = 0;
  // Where `access` of `range` goes. The answers begin at range.sector and may go
  // on beyond it; for access write they have a write side (allocated here).
  virtual Task<std::vector<Answer>> resolve(Range range, Access access) = 0;
  // The kernel used what it was given. Never fails and does no I/O. On replay
  // called before anything but open.
  virtual void promoted(const Promotion& promotion) = 0;
  // Makes every promotion up to and including seq durable, in dependency order.
  // data_flushed: the destinations were flushed after those promotions (FLUSH);
  // otherwise the image flushes them first (D1). Not re-entered.
  virtual Task<> commit(uint64_t seq, bool data_flushed) = 0;
  // Where no overlay serves them. Empty answer: done (ACK).
  virtual Task<std::vector<Answer>> discard(Range range) = 0;
  virtual Task<std::vector<Answer>> zero(Range range) = 0;
  // The whole range, in order, without gaps; long runs may come in several entries.
  virtual Task<std::vector<MapEntry>> map(Range range) = 0;
  // Of a transient image: all that was promoted becomes durable, and the image is a
  // persistent one from here on, to be opened as such. Others just commit.
  virtual Task<> preserve() = 0;
  // After a commit, before another cowd goes on with the device: what spares that one work. More
  // may come afterwards.
  virtual Task<> pause() { co_return; }
  // Clean end, after a last commit: marks the image clean, gives up ownership.
  virtual Task<> close() = 0;
  // For `cowctl info` and `cowctl stats`: a JSON object.
  virtual nlohmann::json stats() const = 0;
  // After close(): how long the file of the top has to be, in bytes; what is behind is cut
  // off. 0: it stays as it is.
  virtual uint64_t used_bytes() const { return 0; }
  // The same of the files that it has from References::growing(); of others it says nothing.
  struct Length {
    const Disk* disk = nullptr;
    uint64_t bytes = 0;
  };
  virtual std::vector<Length> used_lengths() const { return {}; }
  // The kernel may still have mappings that an earlier cowd gave and nobody used yet; true: it
  // is made to forget them before anything is resolved (all but what was promoted, which has
  // been told). For formats that hand out space.
  virtual bool forgets_on_reattach() const { return false; }
};

// What an image keeps of its tables in memory, in bytes, where nobody says otherwise.
inline constexpr uint64_t kMetadataCache = 32 << 20;

struct OpenRequest {
  std::shared_ptr<Disk> top;
  std::shared_ptr<Disk> base;  // null without one
  Durability durability = Durability::flush;
  bool read_only = false;
  // Attaching again what this host's previous cowd served (the kernel device is
  // still there): no clean-close is expected and ownership is already ours.
  bool reattach = false;
  std::string host_id;  // /etc/machine-id
  std::string boot_id;  // /proc/sys/kernel/random/boot_id
  // Null: an image that names others is refused.
  std::shared_ptr<References> references;
  // Drops the kernel's extents in a range; returns when no I/O uses them any more, and what
  // that I/O promoted has been told. Null where no kernel serves the image (a tool).
  std::function<Task<>(Range)> invalidate;
  // Bytes of its tables that it may keep in memory; those beneath it have as much again, all
  // together.
  uint64_t metadata_cache = kMetadataCache;
};

// Options of `cowctl create -o name=value,...`, and what plugins make of them.
using Options = std::map<std::string, std::string>;

struct CreateRequest {
  std::shared_ptr<Disk> top;
  std::shared_ptr<Disk> base;
  uint64_t size = 0;   // bytes of the virtual disk; 0: that of the base
  bool force = false;  // overwrite what looks like an image or a file system
  Options options;
  Progress progress;
  std::shared_ptr<References> references;  // as in OpenRequest
};

struct CheckRequest {
  std::shared_ptr<Disk> top;
  std::shared_ptr<Disk> base;
  bool repair = false;
  Progress progress;
  std::shared_ptr<References> references;  // as in OpenRequest
};

// The outcome of a check, for qemu-img check's exit codes.
struct CheckResult {
  uint64_t errors = 0;  // left uncorrected
  uint64_t leaks = 0;   // left uncorrected
  uint64_t errors_fixed = 0;
  uint64_t leaks_fixed = 0;
  std::vector<std::string> findings;  // a sentence each
  uint64_t total_granules = 0;
  uint64_t allocated_granules = 0;
};

// A state of the disk that an image keeps in itself.
struct Snapshot {
  std::string id;  // no two of an image have the same
  std::string name;
  uint64_t disk_bytes = 0;      // how large the disk was
  uint64_t vm_state_bytes = 0;  // 0: of the disk alone
  uint64_t date_sec = 0;        // since 1970
  uint32_t date_nsec = 0;
  uint64_t vm_clock_nsec = 0;    // how long the guest had run
  uint64_t icount = UINT64_MAX;  // instructions it had executed; UINT64_MAX: not known
};

// Changes of an image that nobody serves. Where one fails, and after a crash in it, the image is
// as it was or as it was to be.
struct SnapshotRequest {
  enum class Action : uint8_t { create, apply, remove };  // apply: the disk becomes as it was then
  std::shared_ptr<Disk> top;
  Action action = Action::create;
  std::string name;  // or its ID, of one that is there
  Progress progress;
};

struct ResizeRequest {
  std::shared_ptr<Disk> top;
  std::shared_ptr<Disk> base;
  uint64_t size = 0;  // bytes of the disk; less than it has: what is behind is lost
  Progress progress;
  std::shared_ptr<References> references;  // as in OpenRequest
};

// `cowctl commit`: what the top holds is written into its base.
struct CommitRequest {
  std::shared_ptr<Disk> top;
  std::shared_ptr<Disk> base;  // where the specification names one
  bool empty = true;           // in the end the top gives up what it holds
  Progress progress;
};

// `cowctl rebase`: the image is to name another base.
struct RebaseRequest {
  std::shared_ptr<Disk> top;
  std::string file;    // as it is to be named; empty: none
  std::string format;  // its format's name; empty if `file` is
  bool dry = false;    // only refuse what cannot be
};

inline constexpr uint32_t kPluginAbi = 1;

struct FormatDescriptor {
  uint32_t abi = kPluginAbi;
  uint32_t size = sizeof(FormatDescriptor);
  const char* name = nullptr;
  const char* description = nullptr;
  bool wants_base = false;  // a BASE may be given
  bool needs_base = false;  // and must be
  // Names and one-line meanings of create options, "name=meaning\n" each; may be null.
  const char* create_options = nullptr;
  // Whether the first 64 KiB (or less) of a disk look like this format. Never used
  // to choose a format: the specification names it.
  bool (*probe)(std::span<const std::byte> head) = nullptr;
  Task<> (*create)(CreateRequest request) = nullptr;
  Task<std::unique_ptr<Image>> (*open)(OpenRequest request) = nullptr;
  // For `cowctl info`: a JSON object; "virtual-size" and "format" always, and
  // "base" where the image names one.
  Task<nlohmann::json> (*info)(std::shared_ptr<Disk> top) = nullptr;
  Task<CheckResult> (*check)(CheckRequest request) = nullptr;
  // How many bytes a TOP must have for a disk of so many bytes, created with these options
  // (an option size= goes before virtual_bytes). Throws Error(EINVAL) where create would. Null:
  // the format cannot say, so cowd cannot make transient stores of it.
  uint64_t (*store_size)(uint64_t virtual_bytes, const Options& options) = nullptr;
  // How many bytes the top may come to need while it is attached for writing. A file is made
  // so long (sparse) before it is opened for that, for the length of a device in a dm table
  // does not change; used_bytes() cuts it back. Null: it never grows.
  Task<uint64_t> (*room)(std::shared_ptr<Disk> top) = nullptr;
  // What is new reads as zeroes. Null: the size of a disk does not change.
  Task<> (*resize)(ResizeRequest request) = nullptr;
  // Both or none. In the order in which they were made.
  Task<std::vector<Snapshot>> (*snapshots)(std::shared_ptr<Disk> top) = nullptr;
  Task<> (*snapshot)(SnapshotRequest request) = nullptr;
  // Before the base is written to. Refuses what cannot be committed; what keeps the top from
  // being opened over a base that has changed is taken away, durably. Null: images of the
  // format are not committed.
  Task<> (*begin_commit)(CommitRequest request) = nullptr;
  // The base has all that the top holds, durably, and nobody has either open. Empties the top
  // if that is wanted, in an order that a crash may cut anywhere. Null: there is nothing to do,
  // and images of the format cannot be emptied.
  Task<> (*end_commit)(CommitRequest request) = nullptr;
  // Changes what the image names, and nothing else: a crash leaves the old name or the new
  // one. Null: images of the format name nothing, or it cannot be changed.
  Task<> (*rebase)(RebaseRequest request) = nullptr;
};

}  // namespace cowd

extern "C" {
// The one symbol a plugin exports.
[[gnu::visibility("default")]] extern const cowd::FormatDescriptor cowd_format;
}
