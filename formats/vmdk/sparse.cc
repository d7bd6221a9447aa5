// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/vmdk/sparse.hh"

#include <algorithm>
#include <cstring>
#include <unordered_set>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/inflate.hh"

namespace cowd::vmdk {
namespace {

using growing::Piece;
using growing::Where;

constexpr uint32_t kHosted = 0x564d444b;  // "KDMV"
constexpr uint32_t kEsx = 0x44574f43;     // "COWD"
constexpr uint64_t kAtTheEnd = ~0ULL;     // directory of a stream
constexpr uint64_t kMaxTables = 1 << 20;
constexpr uint32_t kEsxEntries = 4096;
constexpr uint32_t kZeroGrain = 1;
constexpr uint64_t kMarkerBytes = 12;
constexpr uint64_t kMaxSectors = 0xffffffff;  // entries of tables have 32 bits
constexpr uint64_t kMaxPlaces = 1 << 28;      // looked after: 32 MiB of bits

SparseHeader decode_hosted(std::span<const std::byte> bytes) {
  SparseHeader header;
  header.version = load_le<uint32_t>(bytes, 4);
  header.flags = load_le<uint32_t>(bytes, 8);
  header.capacity = load_le<uint64_t>(bytes, 12);
  header.grain = load_le<uint64_t>(bytes, 20);
  header.descriptor = load_le<uint64_t>(bytes, 28);
  header.descriptor_sectors = load_le<uint64_t>(bytes, 36);
  header.entries = load_le<uint32_t>(bytes, 44);
  header.redundant_directory = load_le<uint64_t>(bytes, 48);
  header.directory = load_le<uint64_t>(bytes, 56);
  header.overhead = load_le<uint64_t>(bytes, 64);
  header.unclean = bytes[kUncleanAt] != std::byte{0};
  header.compression = load_le<uint16_t>(bytes, 77);
  return header;
}

SparseHeader decode_esx(std::span<const std::byte> bytes) {
  SparseHeader header;
  header.cowd = true;
  header.version = load_le<uint32_t>(bytes, 4);
  header.flags = 0;
  header.capacity = load_le<uint32_t>(bytes, 12);
  header.grain = load_le<uint32_t>(bytes, 16);
  header.directory = load_le<uint32_t>(bytes, 20);
  header.entries = kEsxEntries;
  header.overhead = 4;
  return header;
}

std::string problem_with(const SparseHeader& header) {
  if (header.version == 0 || header.version > 3)
    return "its version is " + std::to_string(header.version) + ", and only 1 to 3 are known";
  if (header.capacity == 0 || header.capacity > 1ULL << 42)
    return "its capacity is " + std::to_string(header.capacity) + " sectors";
  if (header.grain == 0 || header.grain > 65536 || (header.grain & (header.grain - 1)) != 0)
    return "its grains have " + std::to_string(header.grain) +
           " sectors, and only powers of two up to 65536 are served";
  if (!header.cowd && (header.entries == 0 || header.entries > 1 << 16 || header.entries % 128))
    return "its grain tables have " + std::to_string(header.entries) + " entries";
  if (header.tables() > kMaxTables)
    return "it has " + std::to_string(header.tables()) + " grain tables, and up to " +
           std::to_string(kMaxTables) + " are served";
  if (header.has(SparseHeader::compressed) && header.compression != 1)
    return "its compression is " + std::to_string(header.compression) +
           ", and only deflate, 1, is known";
  return "";
}

}  // namespace

bool is_sparse(std::span<const std::byte> head) {
  if (head.size() < 4) return false;
  const auto magic = load_le<uint32_t>(head, 0);
  return magic == kHosted || magic == kEsx;
}

Task<SparseHeader> read_sparse_header(Disk& disk) {
  Buffer bytes(kSector);
  co_await read_any(disk, 0, bytes);
  const auto refuse = [&disk](const std::string& what) {
    return Error(EINVAL, disk.name() + " cannot be served as a sparse extent of a VMDK: " + what +
                             ". Check where it comes from, or convert it (qemu-img convert).");
  };
  if (!is_sparse(bytes)) throw refuse("it begins with neither KDMV nor COWD");
  SparseHeader header;
  if (load_le<uint32_t>(bytes, 0) == kEsx) {
    header = decode_esx(bytes);
  } else {
    header = decode_hosted(bytes);
    if (header.directory == kAtTheEnd) {
      if (disk.size() < 3 * kSector) throw refuse("it is too short");
      co_await read_any(disk, disk.size() - 2 * kSector, bytes);
      if (load_le<uint32_t>(bytes, 0) != kHosted)
        throw refuse("it is a stream without its footer, which was cut off");
      header = decode_hosted(bytes);
    }
  }
  if (const std::string problem = problem_with(header); !problem.empty()) throw refuse(problem);
  co_return header;
}

void encode(const SparseHeader& header, std::span<std::byte> out) {
  std::ranges::fill(out, std::byte{0});
  store_le<uint32_t>(out, 0, kHosted);
  store_le<uint32_t>(out, 4, header.version);
  store_le<uint32_t>(out, 8, header.flags);
  store_le<uint64_t>(out, 12, header.capacity);
  store_le<uint64_t>(out, 20, header.grain);
  store_le<uint64_t>(out, 28, header.descriptor);
  store_le<uint64_t>(out, 36, header.descriptor_sectors);
  store_le<uint32_t>(out, 44, header.entries);
  store_le<uint64_t>(out, 48, header.redundant_directory);
  store_le<uint64_t>(out, 56, header.directory);
  store_le<uint64_t>(out, 64, header.overhead);
  out[kUncleanAt] = std::byte(header.unclean);
  std::memcpy(out.data() + 73, "\n \r\n", 4);
  store_le<uint16_t>(out, 77, header.compression);
}

SparseExtent::SparseExtent(Disk& disk, uint32_t dest, uint64_t first, const SparseHeader& header,
                           uint64_t cache_bytes)
    : disk_(disk),
      dest_(dest),
      first_(first),
      header_(header),
      cache_(disk, header.table_bytes(), cache_bytes) {}

Task<> SparseExtent::load() {
  const uint64_t tables = header_.tables(), file = disk_.size() / kSector;
  const bool twice = header_.has(SparseHeader::redundant);
  for (const bool second : {false, true}) {
    if (second && !twice) break;
    const uint64_t at = second ? header_.redundant_directory : header_.directory;
    std::vector<uint32_t>& directory = second ? redundant_ : directory_;
    if (at >= file || (tables * 4 + kSector - 1) / kSector > file - at)
      throw Error(EINVAL, disk_.name() +
                              ", an extent of a VMDK, is damaged: its grain directory is not in "
                              "the file. If it was cut off, copy it again.");
    Buffer bytes(tables * 4);
    co_await read_any(disk_, at * kSector, bytes);
    for (uint64_t i = 0; i < tables; i++) {
      directory.push_back(load_le<uint32_t>(bytes, i * 4));
      if (directory.back() + header_.table_sectors() > file)
        throw Error(EINVAL, disk_.name() + ", an extent of a VMDK, is damaged: grain table " +
                                std::to_string(i) +
                                " is not in the file. If it was cut off, copy it again.");
    }
  }
}

Task<TablePtr> SparseExtent::table(uint64_t index) {
  co_return co_await cache_.get(uint64_t{directory_[index]} * kSector);
}

Task<> SparseExtent::find(uint64_t sector, uint64_t len, std::vector<Piece>& pieces) {
  const uint64_t index = sector / header_.per_table();
  const uint64_t stop = std::min({(index + 1) * header_.per_table(), header_.capacity,
                                  round_up(sector + len, header_.grain) + 64 * header_.grain});
  if (directory_[index] == 0) {
    pieces.push_back({{first_ + sector, stop - sector}, Where::beneath});
    co_return;
  }
  const TablePtr entries = co_await table(index);
  while (sector < stop) {
    const uint64_t grain = sector / header_.grain;
    const uint64_t end = std::min((grain + 1) * header_.grain, stop);
    const auto entry = load_le<uint32_t>(*entries, grain % header_.entries * 4);
    Piece piece;
    piece.range = {first_ + sector, end - sector};
    if (entry == kZeroGrain && header_.has(SparseHeader::zero_grains)) {
      piece.where = Where::zero;
    } else if (entry != 0 && header_.has(SparseHeader::compressed)) {
      piece.where = Where::packed;
    } else if (entry != 0) {
      piece.where = Where::here;
      piece.dest = dest_;
      piece.sector = entry + sector % header_.grain;
      const uint64_t file = disk_.size() / kSector;
      if (piece.sector >= file)
        throw Error(EIO, disk_.name() + ", an extent of a VMDK, is damaged: grain " +
                             std::to_string(grain) + " is at sector " + std::to_string(entry) +
                             ", and the file has " + std::to_string(file) +
                             ". If it was cut off, copy it again.");
      // A file may end within its last grain; what is not there is zeroes.
      if (piece.sector + piece.range.len > file) {
        piece.range.len = file - piece.sector;
        pieces.push_back(piece);
        piece = {{piece.range.end(), first_ + end - piece.range.end()}, Where::zero};
      }
    }
    pieces.push_back(piece);
    sector = end;
  }
}

// A grain of a stream: where it is in the disk, how many bytes follow, and those.
Task<> SparseExtent::unpack(uint64_t sector, std::span<std::byte> out) {
  const uint64_t grain = sector / header_.grain;
  const TablePtr entries = co_await table(grain / header_.entries);
  const uint64_t at = uint64_t{load_le<uint32_t>(*entries, grain % header_.entries * 4)} * kSector;
  const bool marked = header_.has(SparseHeader::markers);
  Buffer marker(kMarkerBytes);
  co_await read_any(disk_, at, marker);
  const uint64_t bytes = marked ? load_le<uint32_t>(marker, 8) : 2 * header_.grain * kSector;
  bool good = bytes <= 2 * header_.grain * kSector + kSector && at < disk_.size() &&
              (!marked || load_le<uint64_t>(marker, 0) == grain * header_.grain);
  if (good) {
    Buffer packed(bytes);
    co_await read_any(disk_, at + (marked ? kMarkerBytes : 0), packed);
    good = inflate_into(packed, out, Wrapping::zlib);
  }
  if (!good)
    throw Error(EIO, disk_.name() + ", an extent of a VMDK, is damaged: the compressed grain " +
                         std::to_string(grain) + " cannot be read. Copy the image again.");
}

Task<> SparseExtent::link(std::span<const growing::Link> links) {
  for (size_t i = 0; i < links.size();) {
    const uint64_t index = links[i].block / header_.entries;
    const TablePtr old = co_await table(index);
    auto changed = std::make_shared<Buffer>(*old);
    for (; i < links.size() && links[i].block / header_.entries == index; i++)
      store_le<uint32_t>(*changed, links[i].block % header_.entries * 4,
                         static_cast<uint32_t>(links[i].sector));
    if (!redundant_.empty())
      co_await write_any(disk_, uint64_t{redundant_[index]} * kSector, *changed);
    const uint64_t at = uint64_t{directory_[index]} * kSector;
    co_await write_any(disk_, at, *changed);
    cache_.put(at, std::move(changed));
  }
}

std::string SparseExtent::no_writing() const {
  if (header_.cowd) return "it is one of ESX's sparse extents, which are only read";
  if (header_.has(SparseHeader::compressed)) return "it is compressed, and such are only read";
  for (const std::vector<uint32_t>* directory : {&directory_, &redundant_})
    if (std::ranges::count(*directory, 0u) != 0)
      return "a grain table of it is missing, and none is made here";
  if (header_.grain * kSector % disk_.block_size() != 0)
    return "its grains are smaller than the blocks of its disk";
  return "";
}

Task<SparseExtent::Use> SparseExtent::used(bool repair) {
  Use use(header_.grain);
  take_tables(use);
  if (!header_.has(SparseHeader::compressed) && use.places.tables_overlap())
    use.errors.push_back(disk_.name() + ": its header, descriptor or tables lie on each other.");
  // One that is there twice is not read twice: they may all be the same.
  std::unordered_set<uint32_t> read;
  for (uint64_t index = 0; index < directory_.size(); index++)
    if (directory_[index] != 0 && read.insert(directory_[index]).second)
      co_await check_table(index, use, repair);
  if (const uint64_t odd = use.places.odd_overlaps(); odd != 0)
    use.errors.push_back(disk_.name() + ": " + std::to_string(odd) +
                         " grains at odd places lie on others.");
  co_return use;
}

void SparseExtent::take(uint64_t first, uint64_t sectors, Use& use) const {
  use.end = std::max(use.end, first + sectors);
  const uint64_t last = (first + std::max<uint64_t>(sectors, 1) - 1) / header_.grain;
  use.taken.set(first / header_.grain, std::min(last + 1, place_count()));
}

void SparseExtent::take_tables(Use& use) const {
  const auto table = [&](uint64_t first, uint64_t sectors) {
    use.places.add_table(first, sectors);
    take(first, sectors, use);
  };
  const uint64_t directory = (header_.tables() * 4 + kSector - 1) / kSector;
  take(0, header_.overhead, use);
  table(0, 1);
  table(header_.directory, directory);
  if (!header_.cowd) table(header_.descriptor, header_.descriptor_sectors);
  if (!redundant_.empty()) table(header_.redundant_directory, directory);
  for (const std::vector<uint32_t>* each : {&directory_, &redundant_})
    for (const uint32_t at : *each)
      if (at != 0) table(at, header_.table_sectors());
}

// That are looked after.
uint64_t SparseExtent::place_count() const {
  return std::min(disk_.size() / kSector / header_.grain + 1, kMaxPlaces);
}

bool SparseExtent::is_place(uint32_t entry) const {
  return entry > kZeroGrain || (entry != 0 && !header_.has(SparseHeader::zero_grains));
}

Task<> SparseExtent::check_table(uint64_t index, Use& use, bool repair) {
  Buffer bytes(header_.table_bytes()), other(header_.table_bytes());
  co_await read_any(disk_, uint64_t{directory_[index]} * kSector, bytes);
  for (uint64_t i = 0; i < header_.entries; i++)
    if (const auto entry = load_le<uint32_t>(bytes, i * 4); is_place(entry))
      check_entry(index * header_.entries + i, entry, use);
  if (redundant_.empty() || redundant_[index] == 0) co_return;
  const uint64_t at = uint64_t{redundant_[index]} * kSector;
  co_await read_any(disk_, at, other);
  if (other == bytes) co_return;
  use.different++;
  if (repair) {
    co_await write_any(disk_, at, bytes);
    co_return;
  }
  for (uint64_t i = 0; i < header_.entries; i++)
    if (const auto entry = load_le<uint32_t>(other, i * 4);
        is_place(entry) && entry < disk_.size() / kSector)
      take(entry, header_.grain, use);
}

void SparseExtent::check_entry(uint64_t grain, uint32_t entry, Use& use) const {
  const bool packed = header_.has(SparseHeader::compressed);
  const auto tell = [&](const std::string& what) {
    if (use.errors.size() < 100)
      use.errors.push_back(disk_.name() + ": grain " + std::to_string(grain) + " at sector " +
                           std::to_string(entry) + " " + what + ".");
  };
  use.grains++;
  if (entry >= disk_.size() / kSector) return tell("is not in the file");
  if (entry * kSector % disk_.block_size() != 0) use.aligned = false;
  if (!packed) {  // which are taken on trust, and never written to
    if (entry < header_.overhead || use.places.is_on_table(entry)) tell("lies on the tables");
    if (use.places.take(entry)) tell("has the place of another one");
  }
  take(entry, packed ? 1 : header_.grain, use);
}

Task<std::shared_ptr<growing::Space>> SparseExtent::space() {
  const Use use = co_await used();
  if (!use.errors.empty())
    throw Error(EINVAL, use.errors.front() +
                            " The image is damaged: attach it read-only and copy what can be "
                            "read.");
  if (!use.aligned)
    throw Error(EOPNOTSUPP, disk_.name() +
                                " cannot be written to: its grains do not begin at the blocks of " +
                                std::to_string(disk_.block_size()) +
                                " bytes of its disk. Attach it read-only, or convert it.");
  const uint64_t limit = std::min(disk_.size() / kSector, kMaxSectors);
  auto space = std::make_shared<growing::Space>(use.end, limit);
  const uint64_t end = std::min(use.end / header_.grain, place_count());
  for (uint64_t at = 0; (at = use.taken.next_free(at, end)) < end;) {
    const uint64_t behind = use.taken.next_taken(at, end);
    space->add_hole(at * header_.grain, behind * header_.grain);
    at = behind;
  }
  co_return space;
}

Task<uint64_t> room_of_extent(std::shared_ptr<Disk> disk) {
  const SparseHeader header = co_await read_sparse_header(*disk);
  if (header.has(SparseHeader::compressed) || header.cowd) co_return disk->size();
  SparseExtent extent(*disk, 0, 0, header, 0);
  co_await extent.load();
  const SparseExtent::Use use = co_await extent.used();
  const uint64_t grains = (header.capacity + header.grain - 1) / header.grain;
  const uint64_t more = grains > use.grains ? grains - use.grains : 0;
  const uint64_t most =
      std::min(round_up(use.end, header.grain) + more * header.grain + growing::kSlack / kSector,
               kMaxSectors);
  co_return std::max(most * kSector, disk->size());
}

}  // namespace cowd::vmdk
