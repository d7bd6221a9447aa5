// SPDX-License-Identifier: GPL-2.0-or-later
// What lies where in a qcow2 image, versions 2 and 3. All integers are big endian; offsets
// are bytes from the beginning of the file. Source: "qcow2 image file format",
// docs/interop/qcow2.txt of QEMU; the section is named beside each structure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "formats/plugin.hh"

namespace cowd::qcow2 {

inline constexpr uint32_t kMagic = 0x514649fb;  // "QFI\xfb"
inline constexpr uint64_t kSector = 512;
inline constexpr uint64_t kPage = 4096;  // tables are read and written in pages of at most this

// Limits, beyond which an image is refused. The first three are those that the
// specification's reference implementation has.
inline constexpr uint64_t kMaxL1Bytes = 32 << 20;
inline constexpr uint64_t kMaxRefcountTableBytes = 8 << 20;
inline constexpr uint32_t kMaxSnapshots = 65536;
inline constexpr uint32_t kMinClusterBits = 9;
inline constexpr uint32_t kMaxClusterBits = 21;
inline constexpr uint32_t kMinExtendedBits = 14;
inline constexpr uint64_t kMaxVirtualSize = uint64_t{1} << 60;

// "Header", feature bits.
inline constexpr uint64_t kDirty = 1 << 0;          // incompatible
inline constexpr uint64_t kCorrupt = 1 << 1;        // incompatible
inline constexpr uint64_t kDataFile = 1 << 2;       // incompatible
inline constexpr uint64_t kCompression = 1 << 3;    // incompatible
inline constexpr uint64_t kExtendedL2 = 1 << 4;     // incompatible
inline constexpr uint64_t kLazyRefcounts = 1 << 0;  // compatible
inline constexpr uint64_t kBitmaps = 1 << 0;        // autoclear
inline constexpr uint64_t kRawExternal = 1 << 1;    // autoclear

// "Extended L2 Entries": an allocation bit for each subcluster, and behind those a zero bit.
inline constexpr uint64_t kSubclusters = 32;
inline constexpr uint64_t kAllAllocated = 0xffffffff;

enum class Compression : uint8_t { zlib = 0, zstd = 1 };

struct Header {
  uint32_t version = 3;
  uint64_t backing_name_offset = 0;
  uint32_t backing_name_size = 0;
  uint32_t cluster_bits = 16;
  uint64_t size = 0;  // bytes of the disk
  uint32_t crypt_method = 0;
  uint32_t l1_entries = 0;
  uint64_t l1_offset = 0;
  uint64_t refcount_table_offset = 0;
  uint32_t refcount_table_clusters = 0;
  uint32_t snapshots = 0;
  uint64_t snapshots_offset = 0;
  uint64_t incompatible = 0;
  uint64_t compatible = 0;
  uint64_t autoclear = 0;
  uint32_t refcount_order = 4;
  uint32_t length = 104;
  Compression compression = Compression::zlib;

  // From the header extensions and what follows them.
  std::string backing_name;
  std::string backing_format;
  std::string data_file;
  bool has_bitmaps = false;
  uint64_t bitmap_directory_offset = 0;
  uint64_t bitmap_directory_size = 0;

  uint64_t cluster() const { return uint64_t{1} << cluster_bits; }
  uint64_t page() const { return cluster() < kPage ? cluster() : kPage; }
  bool extended() const { return incompatible & kExtendedL2; }
  bool has_data_file() const { return incompatible & kDataFile; }
  uint64_t l2_entry_bytes() const { return extended() ? 16 : 8; }
  uint64_t l2_entries() const { return cluster() / l2_entry_bytes(); }
  // A granule is what an L2 entry says of one by one: a subcluster, or else the cluster.
  uint64_t granules_per_cluster() const { return extended() ? kSubclusters : 1; }
  uint64_t granule() const { return cluster() / granules_per_cluster(); }
  uint64_t clusters() const { return (size + cluster() - 1) >> cluster_bits; }
  uint64_t l1_needed() const { return (clusters() + l2_entries() - 1) / l2_entries(); }
  uint32_t refcount_bits() const { return 1U << refcount_order; }
  uint64_t refcounts_per_block() const { return (cluster() * 8) >> refcount_order; }
  uint64_t refcount_max() const {
    return refcount_order == 6 ? UINT64_MAX : (uint64_t{1} << refcount_bits()) - 1;
  }
};

// Parses and judges the header in the first cluster of the image. `file_size`: of the file.
// Throws EINVAL with a sentence that names the image, or ENOTSUP for what is not known here.
Task<Header> read_header(Disk& disk);

// The header alone, without extensions, as it lies at 0; 72 or header.length bytes.
std::vector<std::byte> encode(const Header& header);
// The whole of the first cluster's beginning, with extensions and the backing name, whose
// place is put into `header`. For create.
std::vector<std::byte> encode_all(Header& header);
// Writes the fixed fields at 0 again, one block: atomic as far as the disk is. No flush.
Task<> write_header(Disk& disk, const Header& header);

bool looks_like(std::span<const std::byte> head);

// "Cluster mapping"
inline constexpr uint64_t kOffsetMask = 0x00fffffffffffe00;
inline constexpr uint64_t kCopied = uint64_t{1} << 63;
inline constexpr uint64_t kCompressed = uint64_t{1} << 62;
inline constexpr uint64_t kZero = 1;
inline constexpr uint64_t kL1Reserved = 0x7f000000000001ff;
inline constexpr uint64_t kL2Reserved = 0x3f000000000001fe;

// An L2 entry as it is on disk.
struct Link {
  uint64_t raw = 0;
  uint64_t bitmap = 0;  // extended: allocated in the low, zero in the high half
  bool operator==(const Link&) const = default;
};

struct CompressedPlace {
  uint64_t offset = 0;
  uint64_t bytes = 0;  // at most; the end is rounded to a sector
};

// What an L2 entry says; of an extended one with its bitmap.
struct Entry {
  enum class Kind : uint8_t { none, zero, data, compressed } kind = Kind::none;
  uint64_t host = 0;  // of data, and of zero where a cluster is kept for it (`allocated`)
  bool allocated = false;
  bool copied = false;
  uint64_t raw = 0;
  uint64_t bitmap = 0;  // extended: alloc in the low, zero in the high half
  bool operator==(const Entry&) const = default;
};

// Throws EIO for a damaged entry of cluster `index` of the disk.
Entry decode(const Header& header, uint64_t raw, uint64_t bitmap, uint64_t index,
             const std::string& name);
inline Entry decode(const Header& header, const Link& link, uint64_t index,
                    const std::string& name) {
  return decode(header, link.raw, link.bitmap, index, name);
}
// Of a page of a table, at a byte of it.
Link load_link(const Header& header, std::span<const std::byte> page, uint64_t at);
void store_link(const Header& header, std::span<std::byte> page, uint64_t at, const Link& link);
// Of one granule of the cluster; a compressed cluster is so in all of them.
Entry::Kind kind_of(const Header& header, const Entry& entry, uint64_t granule);
// The entry after data has come to a granule of a cluster that is at `host` (bytes) now. Where
// it was elsewhere before, or compressed, all of it has been copied there.
Link with_data(const Header& header, Link link, uint64_t granule, uint64_t host);
CompressedPlace compressed_place(const Header& header, uint64_t raw);

// "Refcount blocks": value `index` of a block (or of a page of one).
uint64_t get_refcount(std::span<const std::byte> block, uint64_t index, uint32_t order);
void set_refcount(std::span<std::byte> block, uint64_t index, uint32_t order, uint64_t value);

}  // namespace cowd::qcow2
