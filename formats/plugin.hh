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

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include <boost/asio/awaitable.hpp>
#include <nlohmann/json_fwd.hpp>

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
  virtual uint64_t size() const = 0;         // bytes
  virtual uint32_t block_size() const = 0;   // bytes, the unit that is written at once: 512 or 4096
  virtual bool read_only() const = 0;
  virtual const std::string& name() const = 0;  // for sentences: "/dev/vg/cow"
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
  // Clean end, after a last commit: marks the image clean, gives up ownership.
  virtual Task<> close() = 0;
  // For `cowctl info` and `cowctl stats`: a JSON object.
  virtual nlohmann::json stats() const = 0;
};

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
};

// Options of `cowctl create -o name=value,...`, and what plugins make of them.
using Options = std::map<std::string, std::string>;

struct CreateRequest {
  std::shared_ptr<Disk> top;
  std::shared_ptr<Disk> base;
  uint64_t size = 0;  // bytes of the virtual disk; 0: that of the base
  bool force = false; // overwrite what looks like an image or a file system
  Options options;
  Progress progress;
};

struct CheckRequest {
  std::shared_ptr<Disk> top;
  std::shared_ptr<Disk> base;
  bool repair = false;
  Progress progress;
};

// The outcome of a check, for qemu-img check's exit codes.
struct CheckResult {
  uint64_t errors = 0;        // left uncorrected
  uint64_t leaks = 0;         // left uncorrected
  uint64_t errors_fixed = 0;
  uint64_t leaks_fixed = 0;
  std::vector<std::string> findings;  // a sentence each
  uint64_t total_granules = 0;
  uint64_t allocated_granules = 0;
};

inline constexpr uint32_t kPluginAbi = 1;

struct FormatDescriptor {
  uint32_t abi = kPluginAbi;
  uint32_t size = sizeof(FormatDescriptor);
  const char* name = nullptr;
  const char* description = nullptr;
  bool wants_base = false;   // a BASE may be given
  bool needs_base = false;   // and must be
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
};

}  // namespace cowd

extern "C" {
// The one symbol a plugin exports.
[[gnu::visibility("default")]] extern const cowd::FormatDescriptor cowd_format;
}
