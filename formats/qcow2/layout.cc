// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/qcow2/layout.hh"

#include <algorithm>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/backing.hh"
#include "formats/common/bytes.hh"

namespace cowd::qcow2 {
namespace {

constexpr uint32_t kV2Length = 72;
constexpr uint32_t kV3Length = 104;
constexpr uint64_t kKnownIncompatible = kDirty | kCorrupt | kDataFile | kCompression | kExtendedL2;

// "Header extensions"
constexpr uint32_t kEndExtension = 0;
constexpr uint32_t kBackingFormat = 0xe2792aca;
constexpr uint32_t kFeatureNames = 0x6803f857;
constexpr uint32_t kBitmapsExtension = 0x23852875;
constexpr uint32_t kEncryption = 0x0537be77;
constexpr uint32_t kDataFileName = 0x44415441;

[[noreturn]] void bad(const Disk& disk, const std::string& what, int code = EINVAL) {
  throw Error(code, disk.name() + ": " + what);
}

std::string hex(uint64_t value) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  do text.insert(text.begin(), kDigits[value & 15]);
  while (value >>= 4);
  return "0x" + text;
}

Header decode_fields(const Disk& disk, std::span<const std::byte> head) {
  Header header;
  header.version = load_be<uint32_t>(head, 4);
  if (header.version != 2 && header.version != 3)
    bad(disk,
        "the header says qcow2 version " + std::to_string(header.version) +
            ", and versions 2 and 3 are known here. Convert the image with 'qemu-img "
            "convert -O qcow2'.",
        ENOTSUP);
  header.backing_name_offset = load_be<uint64_t>(head, 8);
  header.backing_name_size = load_be<uint32_t>(head, 16);
  header.cluster_bits = load_be<uint32_t>(head, 20);
  header.size = load_be<uint64_t>(head, 24);
  header.crypt_method = load_be<uint32_t>(head, 32);
  header.l1_entries = load_be<uint32_t>(head, 36);
  header.l1_offset = load_be<uint64_t>(head, 40);
  header.refcount_table_offset = load_be<uint64_t>(head, 48);
  header.refcount_table_clusters = load_be<uint32_t>(head, 56);
  header.snapshots = load_be<uint32_t>(head, 60);
  header.snapshots_offset = load_be<uint64_t>(head, 64);
  header.length = kV2Length;
  if (header.version == 2) return header;
  header.incompatible = load_be<uint64_t>(head, 72);
  header.compatible = load_be<uint64_t>(head, 80);
  header.autoclear = load_be<uint64_t>(head, 88);
  header.refcount_order = load_be<uint32_t>(head, 96);
  header.length = load_be<uint32_t>(head, 100);
  if (header.length < kV3Length || header.length % 8 != 0)
    bad(disk, "the header says that it is " + std::to_string(header.length) +
                  " bytes long, which it cannot be: restore the image from a backup.");
  if (header.length > kV3Length)
    header.compression = Compression(std::to_integer<uint8_t>(head[kV3Length]));
  return header;
}

void require_table(const Disk& disk, const Header& header, const char* what, uint64_t offset,
                   uint64_t bytes) {
  if (offset % header.cluster() != 0 || offset == 0 || offset > kOffsetMask ||
      bytes > kOffsetMask - offset)
    bad(disk, std::string("the header says that the ") + what + " is at " + hex(offset) +
                  ", where it cannot be: restore the image from a backup.");
  if (offset + bytes > round_up(disk.size(), header.cluster()))
    bad(disk, std::string("the ") + what + " at " + hex(offset) +
                  " is beyond the end of the file. If it was cut off or copied in part, make it "
                  "as long as it was.");
}

void require_features(const Disk& disk, const Header& header) {
  if (header.incompatible & ~kKnownIncompatible)
    bad(disk,
        "the image has features that are not known here (incompatible bits " +
            hex(header.incompatible & ~kKnownIncompatible) +
            "): use a newer cowd, or convert it with 'qemu-img convert'.",
        ENOTSUP);
  if (header.crypt_method != 0)
    bad(disk,
        std::string("the image is encrypted (") + (header.crypt_method == 1 ? "AES" : "LUKS") +
            "), which is not done here: convert it to one that is not ('qemu-img convert') "
            "and encrypt what lies under it (dm-crypt).",
        ENOTSUP);
  if (header.extended() && header.cluster_bits < kMinExtendedBits)
    bad(disk, "extended L2 entries need clusters of 16 KiB or more, and the header says 2^" +
                  std::to_string(header.cluster_bits) + ": restore the image from a backup.");
  if (header.compression > Compression::zstd)
    bad(disk,
        "clusters are compressed in a way (type " +
            std::to_string(static_cast<unsigned>(header.compression)) +
            ") that is not known here. Convert the image with 'qemu-img convert'.",
        ENOTSUP);
  const bool other = header.compression != Compression::zlib;
  if (other != ((header.incompatible & kCompression) != 0))
    bad(disk,
        "the header's compression type and its incompatible bit 3 contradict each other: "
        "restore the image from a backup.");
}

void require_sizes(const Disk& disk, const Header& header) {
  if (header.cluster_bits < kMinClusterBits || header.cluster_bits > kMaxClusterBits)
    bad(disk, "the header says that clusters have 2^" + std::to_string(header.cluster_bits) +
                  " bytes; from 2^9 to 2^21 are possible. Restore the image from a backup.");
  if (header.refcount_order > 6)
    bad(disk, "the header says that refcounts have 2^" + std::to_string(header.refcount_order) +
                  " bits; 2^6 is the most. Restore the image from a backup.");
  if (header.length > header.cluster())
    bad(disk, "the header says that it is longer than a cluster: restore the image from a backup.");
  if (header.size > kMaxVirtualSize || header.size % kSector != 0)
    bad(disk, "the header says that the disk has " + std::to_string(header.size) +
                  " bytes, which is too many or not a multiple of 512: restore the image from a "
                  "backup, or set a size with 'qemu-img resize'.");
  if (header.size == 0)
    bad(disk, "the disk in it has no bytes: 'qemu-img resize' makes it larger.");
  if (uint64_t{header.l1_entries} * 8 > kMaxL1Bytes)
    bad(disk, "the header says that the L1 table has " + std::to_string(header.l1_entries) +
                  " entries, more than the 32 MiB that it may have: restore the image from a "
                  "backup.");
}

void require_places(const Disk& disk, const Header& header) {
  if (header.l1_entries < header.l1_needed())
    bad(disk, "the L1 table has " + std::to_string(header.l1_entries) + " entries and " +
                  std::to_string(header.l1_needed()) + " are needed for a disk of " +
                  std::to_string(header.size) + " bytes: restore the image from a backup.");
  require_table(disk, header, "L1 table", header.l1_offset, uint64_t{header.l1_entries} * 8);
  const uint64_t table = uint64_t{header.refcount_table_clusters} << header.cluster_bits;
  if (table == 0 || table > kMaxRefcountTableBytes)
    bad(disk, "the header says that the refcount table has " +
                  std::to_string(header.refcount_table_clusters) +
                  " clusters, none or more than 8 MiB: restore the image from a backup.");
  require_table(disk, header, "refcount table", header.refcount_table_offset, table);
  if (header.snapshots > kMaxSnapshots)
    bad(disk, "the header says that there are " + std::to_string(header.snapshots) +
                  " snapshots; 65536 is the most. Restore the image from a backup.");
  if (header.snapshots)
    require_table(disk, header, "snapshot table", header.snapshots_offset, header.snapshots * 40);
}

// `head`: the first cluster.
void read_extensions(const Disk& disk, Header& header, std::span<const std::byte> head) {
  const uint64_t end = header.backing_name_offset
                           ? std::min<uint64_t>(header.backing_name_offset, head.size())
                           : head.size();
  uint64_t at = header.length;
  while (at + 8 <= end) {
    const auto type = load_be<uint32_t>(head, at);
    const auto length = load_be<uint32_t>(head, at + 4);
    if (type == kEndExtension) return;
    if (length > end - at - 8)
      bad(disk, "the header extension " + hex(type) + " at " + std::to_string(at) +
                    " is longer than the room it has: restore the image from a backup.");
    const auto* text = reinterpret_cast<const char*>(head.data() + at + 8);
    switch (type) {
      case kBackingFormat: header.backing_format.assign(text, length); break;
      case kDataFileName: header.data_file.assign(text, length); break;
      case kBitmapsExtension:
        if (length < 24) break;
        header.has_bitmaps = true;
        header.bitmap_directory_size = load_be<uint64_t>(head, at + 16);
        header.bitmap_directory_offset = load_be<uint64_t>(head, at + 24);
        break;
      case kEncryption:
        bad(disk,
            "the image is encrypted (LUKS), which is not done here: convert it to one that "
            "is not ('qemu-img convert') and encrypt what lies under it (dm-crypt).",
            ENOTSUP);
      default: break;
    }
    at += 8 + round_up(length, 8);
  }
}

void read_backing_name(const Disk& disk, Header& header, std::span<const std::byte> head) {
  if (header.backing_name_offset == 0) return;
  if (header.backing_name_size > kMaxBackingName || header.backing_name_offset < header.length ||
      header.backing_name_offset > head.size() ||
      header.backing_name_size > head.size() - header.backing_name_offset)
    bad(disk,
        "the name of the backing file is not in the first cluster, or longer than 1023 "
        "bytes: restore the image from a backup, or set it with 'qemu-img rebase -u'.");
  header.backing_name.assign(
      reinterpret_cast<const char*>(head.data() + header.backing_name_offset),
      header.backing_name_size);
  if (header.backing_name.find('\0') != std::string::npos)
    bad(disk, "the name of the backing file has a NUL in it: set it with 'qemu-img rebase -u'.");
}

void put_extension(std::vector<std::byte>& head, uint32_t type, std::span<const std::byte> data) {
  const size_t at = head.size();
  head.resize(at + 8 + round_up(data.size(), 8));
  store_be<uint32_t>(head, at, type);
  store_be<uint32_t>(head, at + 4, static_cast<uint32_t>(data.size()));
  std::ranges::copy(data, head.begin() + static_cast<ptrdiff_t>(at + 8));
}

// Type, bit and name of a feature, 48 bytes each, for programs that do not know it.
std::vector<std::byte> feature_names() {
  struct Name {
    uint8_t type, bit;
    const char* name;
  };
  static constexpr Name kNames[] = {
      {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
      {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
      {2, 0, "bitmaps"},          {2, 1, "raw external data"}};
  std::vector<std::byte> table;
  for (const Name& each : kNames) {
    const size_t at = table.size();
    table.resize(at + 48);
    table[at] = std::byte(each.type);
    table[at + 1] = std::byte(each.bit);
    const std::string name = each.name;
    std::ranges::transform(name, table.begin() + static_cast<ptrdiff_t>(at + 2),
                           [](char c) { return std::byte(c); });
  }
  return table;
}

}  // namespace

bool looks_like(std::span<const std::byte> head) {
  return head.size() >= 8 && load_be<uint32_t>(head, 0) == kMagic &&
         (load_be<uint32_t>(head, 4) == 2 || load_be<uint32_t>(head, 4) == 3);
}

Task<Header> read_header(Disk& disk) {
  Buffer fields(kSector);
  co_await read_any(disk, 0, fields);
  if (disk.size() < kV2Length || load_be<uint32_t>(fields, 0) != kMagic)
    bad(disk,
        "this is no qcow2 image: it does not begin with QFI and 0xfb. Say which format it "
        "has, or make an image with 'cowctl create'.");
  Header header = decode_fields(disk, fields);
  require_sizes(disk, header);
  require_features(disk, header);
  require_places(disk, header);
  Buffer head(header.cluster());
  co_await read_any(disk, 0, head);
  read_extensions(disk, header, head);
  read_backing_name(disk, header, head);
  if (header.has_data_file() && header.data_file.empty())
    bad(disk,
        "the data is in another file, and the header does not say which: set it with "
        "'qemu-img amend -o data_file=...'.");
  co_return header;
}

std::vector<std::byte> encode(const Header& header) {
  std::vector<std::byte> bytes(header.version == 2 ? kV2Length : std::min(header.length, 112U));
  store_be<uint32_t>(bytes, 0, kMagic);
  store_be<uint32_t>(bytes, 4, header.version);
  store_be<uint64_t>(bytes, 8, header.backing_name_offset);
  store_be<uint32_t>(bytes, 16, header.backing_name_size);
  store_be<uint32_t>(bytes, 20, header.cluster_bits);
  store_be<uint64_t>(bytes, 24, header.size);
  store_be<uint32_t>(bytes, 32, header.crypt_method);
  store_be<uint32_t>(bytes, 36, header.l1_entries);
  store_be<uint64_t>(bytes, 40, header.l1_offset);
  store_be<uint64_t>(bytes, 48, header.refcount_table_offset);
  store_be<uint32_t>(bytes, 56, header.refcount_table_clusters);
  store_be<uint32_t>(bytes, 60, header.snapshots);
  store_be<uint64_t>(bytes, 64, header.snapshots_offset);
  if (header.version == 2) return bytes;
  store_be<uint64_t>(bytes, 72, header.incompatible);
  store_be<uint64_t>(bytes, 80, header.compatible);
  store_be<uint64_t>(bytes, 88, header.autoclear);
  store_be<uint32_t>(bytes, 96, header.refcount_order);
  store_be<uint32_t>(bytes, 100, header.length);
  if (bytes.size() > kV3Length) bytes[kV3Length] = std::byte(header.compression);
  return bytes;
}

std::vector<std::byte> encode_all(Header& header) {
  std::vector<std::byte> head(header.length);
  const auto text = [](const std::string& s) { return std::as_bytes(std::span(s)); };
  if (!header.backing_format.empty())
    put_extension(head, kBackingFormat, text(header.backing_format));
  if (header.has_data_file()) put_extension(head, kDataFileName, text(header.data_file));
  // A small cluster has no room for it, and nobody needs it.
  if (header.version == 3 && header.cluster_bits >= 12)
    put_extension(head, kFeatureNames, feature_names());
  put_extension(head, kEndExtension, {});
  if (!header.backing_name.empty()) {
    header.backing_name_offset = head.size();
    header.backing_name_size = static_cast<uint32_t>(header.backing_name.size());
    const auto name = text(header.backing_name);
    head.insert(head.end(), name.begin(), name.end());
  }
  const std::vector<std::byte> fields = encode(header);
  std::ranges::copy(fields, head.begin());
  return head;
}

Task<> write_header(Disk& disk, const Header& header) {
  const std::vector<std::byte> fields = encode(header);
  co_await write_any(disk, 0, fields);
}

Entry decode(const Header& header, uint64_t raw, uint64_t bitmap, uint64_t index,
             const std::string& name) {
  const auto damaged = [&](const std::string& what) {
    return Error(EIO, name + ": the L2 entry " + hex(raw) + " of cluster " + std::to_string(index) +
                          " of the disk " + what +
                          ". Run 'cowctl check', and restore the image from a backup.");
  };
  Entry entry;
  entry.raw = raw;
  entry.bitmap = bitmap;
  if (raw & kCompressed) {
    if (raw & kCopied || header.has_data_file() || bitmap)
      throw damaged("is of a compressed cluster and says what it cannot");
    entry.kind = Entry::Kind::compressed;
    return entry;
  }
  if (raw & kL2Reserved) throw damaged("has bits set that mean nothing");
  entry.host = raw & kOffsetMask;
  entry.copied = raw & kCopied;
  entry.allocated = entry.host != 0 || (header.has_data_file() && entry.copied);
  if (entry.host % header.cluster() != 0) throw damaged("is not of the beginning of a cluster");
  if (header.has_data_file() && entry.allocated) {
    if (entry.host != index << header.cluster_bits)
      throw damaged("names another place in the data file than its own");
    entry.copied = true;  // nobody shares it
  }
  if (header.extended()) {
    if (raw & kZero || (bitmap & 0xffffffff & (bitmap >> 32)) != 0 ||
        (!entry.allocated && (bitmap & 0xffffffff)))
      throw damaged("and its bitmap " + hex(bitmap) + " contradict each other");
    // What the cluster is as a whole is for its subclusters to say.
    entry.kind = entry.allocated || bitmap ? Entry::Kind::data : Entry::Kind::none;
    return entry;
  }
  if (raw & kZero && header.version == 2) throw damaged("has bits set that mean nothing");
  if (raw & kZero)
    entry.kind = Entry::Kind::zero;
  else if (entry.allocated)
    entry.kind = Entry::Kind::data;
  return entry;
}

Link load_link(const Header& header, std::span<const std::byte> page, uint64_t at) {
  return {load_be<uint64_t>(page, at),
          header.extended() ? load_be<uint64_t>(page, at + 8) : uint64_t{0}};
}

void store_link(const Header& header, std::span<std::byte> page, uint64_t at, const Link& link) {
  store_be<uint64_t>(page, at, link.raw);
  if (header.extended()) store_be<uint64_t>(page, at + 8, link.bitmap);
}

Entry::Kind kind_of(const Header& header, const Entry& entry, uint64_t granule) {
  if (!header.extended() || entry.kind == Entry::Kind::compressed) return entry.kind;
  if (entry.bitmap >> granule & 1) return Entry::Kind::data;
  return entry.bitmap >> (kSubclusters + granule) & 1 ? Entry::Kind::zero : Entry::Kind::none;
}

Link with_data(const Header& header, Link link, uint64_t granule, uint64_t host) {
  const uint64_t before = link.raw & kOffsetMask;
  const bool moved = link.raw & kCompressed || (before != 0 && before != host);
  link.raw = host | kCopied;
  if (!header.extended()) return link;
  const uint64_t bits = moved ? kAllAllocated : uint64_t{1} << granule;
  link.bitmap = (link.bitmap | bits) & ~(bits << kSubclusters);
  return link;
}

// "Compressed Clusters Descriptor": x = 62 - (cluster_bits - 8) bits of offset, then the
// number of sectors beyond the one in which it begins.
CompressedPlace compressed_place(const Header& header, uint64_t raw) {
  const uint32_t x = 62 - (header.cluster_bits - 8);
  CompressedPlace place;
  place.offset = raw & ((uint64_t{1} << x) - 1);
  const uint64_t sectors = (raw & ~(kCopied | kCompressed)) >> x;
  place.bytes = (sectors + 1) * kSector - place.offset % kSector;
  return place;
}

uint64_t get_refcount(std::span<const std::byte> block, uint64_t index, uint32_t order) {
  switch (order) {
    case 3: return load_be<uint8_t>(block, index);
    case 4: return load_be<uint16_t>(block, index * 2);
    case 5: return load_be<uint32_t>(block, index * 4);
    case 6: return load_be<uint64_t>(block, index * 8);
    default: break;
  }
  // Less than a byte: the lowest bits are the first.
  const uint64_t bit = index << order;
  const uint64_t mask = (uint64_t{1} << (1U << order)) - 1;
  return std::to_integer<uint64_t>(block[bit / 8]) >> (bit % 8) & mask;
}

void set_refcount(std::span<std::byte> block, uint64_t index, uint32_t order, uint64_t value) {
  switch (order) {
    case 3: return store_be<uint8_t>(block, index, static_cast<uint8_t>(value));
    case 4: return store_be<uint16_t>(block, index * 2, static_cast<uint16_t>(value));
    case 5: return store_be<uint32_t>(block, index * 4, static_cast<uint32_t>(value));
    case 6: return store_be<uint64_t>(block, index * 8, value);
    default: break;
  }
  const uint64_t bit = index << order;
  const uint64_t mask = ((uint64_t{1} << (1U << order)) - 1) << (bit % 8);
  const uint64_t old = std::to_integer<uint64_t>(block[bit / 8]);
  block[bit / 8] = std::byte((old & ~mask) | (value << (bit % 8) & mask));
}

}  // namespace cowd::qcow2
