// SPDX-License-Identifier: GPL-2.0-or-later
// Makes an image: header, refcount table, refcount blocks and the L1 table, sized for the disk;
// with preallocation also all L2 tables, and a place for each cluster behind them. The header
// comes last: a crash leaves no image or a whole one.
//
// A data file must be there, however short. It gets the length of the disk and is all zeroes
// then, which is what an image says of which nothing is allocated.
#include <algorithm>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/backing.hh"
#include "formats/common/bytes.hh"
#include "formats/common/options.hh"
#include "formats/common/signatures.hh"
#include "formats/qcow2/operations.hh"

namespace cowd::qcow2 {
namespace {

constexpr uint64_t kAtOnce = 1 << 20;
constexpr uint64_t kNewFile = 4096;  // no longer than this is a data file that was made for us

enum class Preallocation : uint8_t { off, metadata, written };

// Where things come, in bytes; what is not there is empty.
struct Places {
  uint64_t l2 = 0;    // behind the L1 table
  uint64_t data = 0;  // behind the L2 tables
  uint64_t end = 0;
};

uint32_t bits_of(uint64_t value) {
  uint32_t bits = 0;
  while (value >> bits > 1) bits++;
  return bits;
}

bool take_switch(Options& options, const std::string& name) {
  const std::string value = take_text(options, name, "off");
  if (value != "on" && value != "off")
    throw Error(EINVAL, "Option " + name + "=" + value + " is neither on nor off.");
  return value == "on";
}

void take_version(Options& options, Header& header) {
  const std::string compat = take_text(options, "compat", "1.1");
  if (compat != "1.1" && compat != "v3" && compat != "0.10" && compat != "v2")
    throw Error(EINVAL, "Option compat=" + compat +
                            " is no version of qcow2: say 1.1 (or v3), or 0.10 (or v2).");
  header.version = compat == "1.1" || compat == "v3" ? 3 : 2;
  header.length = header.version == 3 ? 104 : 72;
  const uint64_t bits = take_size(options, "refcount_bits", 16);
  if (bits == 0 || bits > 64 || (bits & (bits - 1)) != 0)
    throw Error(EINVAL, "Option refcount_bits=" + std::to_string(bits) +
                            " is no power of two from 1 to 64.");
  header.refcount_order = bits_of(bits);
  const bool lazy = take_switch(options, "lazy_refcounts");
  if (header.version == 2 && (bits != 16 || lazy))
    throw Error(EINVAL, "refcount_bits and lazy_refcounts need compat=1.1.");
  if (lazy) header.compatible |= kLazyRefcounts;
}

void take_cluster(Options& options, Header& header) {
  const uint64_t cluster = take_size(options, "cluster_size", 64 << 10);
  header.cluster_bits = bits_of(cluster);
  if (cluster != header.cluster() || header.cluster_bits < kMinClusterBits ||
      header.cluster_bits > kMaxClusterBits)
    throw Error(EINVAL, "Option cluster_size=" + std::to_string(cluster) +
                            " is no power of two from 512 to 2M.");
}

void refuse_options(const Options& options) {
  for (const char* name : {"encryption", "encrypt.format"})
    if (options.count(name))
      throw Error(ENOTSUP, std::string("Option ") + name +
                               " is not done here: encrypt what lies under it (dm-crypt).");
}

// After the version and the cluster size.
void take_features(Options& options, Header& header) {
  const std::string compression = take_text(options, "compression_type", "zlib");
  if (compression != "zlib" && compression != "zstd")
    throw Error(EINVAL, "Option compression_type=" + compression + " is neither zlib nor zstd.");
  if (compression == "zstd") {
    header.compression = Compression::zstd;
    header.incompatible |= kCompression;
    header.length = 112;
  }
  if (take_switch(options, "extended_l2")) {
    if (header.cluster_bits < kMinExtendedBits)
      throw Error(EINVAL, "Option extended_l2=on needs a cluster_size of 16K or more.");
    header.incompatible |= kExtendedL2;
  }
  header.data_file = take_text(options, "data_file", "");
  if (!header.data_file.empty()) header.incompatible |= kDataFile;
  if (take_switch(options, "data_file_raw")) {
    if (header.data_file.empty())
      throw Error(EINVAL, "Option data_file_raw is given without data_file.");
    header.autoclear |= kRawExternal;
  }
  if (header.version == 2 && (header.incompatible || header.autoclear))
    throw Error(EINVAL, "compression_type, extended_l2 and data_file need compat=1.1.");
}

Preallocation take_preallocation(Options& options) {
  const std::string text = take_text(options, "preallocation", "off");
  if (text == "off") return Preallocation::off;
  if (text == "metadata") return Preallocation::metadata;
  if (text == "falloc" || text == "full") return Preallocation::written;
  throw Error(EINVAL, "Option preallocation=" + text + " is none of off, metadata, falloc, full.");
}

// A cluster that has a place is no longer read from beneath; its subclusters may be.
void require_sense(const Header& header, Preallocation preallocation) {
  if (header.backing_name.empty()) return;
  if (preallocation != Preallocation::off && !header.extended())
    throw Error(EINVAL, "Option preallocation hides the backing file: it needs extended_l2=on.");
  if (header.autoclear & kRawExternal)
    throw Error(EINVAL,
                "With data_file_raw=on the data file has all of the disk in it: it cannot lie on "
                "a backing_file.");
}

uint64_t clusters_for(const Header& header, uint64_t bytes) {
  return (bytes + header.cluster() - 1) >> header.cluster_bits;
}

// One after the other: header, refcount table, refcount blocks, L1 table, L2 tables, data.
Places place(Header& header, Preallocation preallocation) {
  const uint64_t l1 = std::max<uint64_t>(header.l1_needed(), 1);
  if (l1 * 8 > kMaxL1Bytes)
    throw Error(EINVAL, "A disk of " + human_size(header.size) + " with clusters of " +
                            human_size(header.cluster()) +
                            " needs an L1 table of more than 32 MiB: give a larger cluster_size.");
  header.l1_entries = static_cast<uint32_t>(l1);
  const uint64_t l1_clusters = clusters_for(header, l1 * 8);
  const bool all = preallocation != Preallocation::off;
  const uint64_t l2_clusters = all ? l1 : 0;
  const uint64_t data = all && !header.has_data_file() ? header.clusters() : 0;
  uint64_t blocks = 1, tables = 1;
  for (uint64_t before = 0; before != blocks + tables;) {
    before = blocks + tables;
    const uint64_t used = 1 + before + l1_clusters + l2_clusters + data;
    blocks = (used + header.refcounts_per_block() - 1) / header.refcounts_per_block();
    tables = clusters_for(header, blocks * 8);
  }
  if (tables << header.cluster_bits > kMaxRefcountTableBytes)
    throw Error(EINVAL,
                "Preallocating so much needs a refcount table of more than 8 MiB: give a "
                "larger cluster_size.");
  header.refcount_table_offset = header.cluster();
  header.refcount_table_clusters = static_cast<uint32_t>(tables);
  header.l1_offset = (1 + tables + blocks) << header.cluster_bits;
  Places places;
  places.l2 = header.l1_offset + (l1_clusters << header.cluster_bits);
  places.data = places.l2 + (l2_clusters << header.cluster_bits);
  places.end = places.data + (data << header.cluster_bits);
  return places;
}

Task<> clear_top(const CreateRequest& request, const Header& header) {
  Disk& top = *request.top;
  if (top.read_only())
    throw Error(EROFS, top.name() + " is read-only: an image cannot be made there.");
  if (header.granule() < top.block_size())
    throw Error(EINVAL, top.name() + " has blocks of " + std::to_string(top.block_size()) +
                            " bytes: clusters, or with extended_l2 a 32nd of them, cannot be "
                            "smaller.");
  if (top.size() == 0) co_return;
  const std::vector<Signature> found = co_await find_signatures(top);
  if (!found.empty() && !request.force)
    throw Error(EEXIST, top.name() + " holds " + found.front().what +
                            ": to lose that and make a qcow2 image there, say --force.");
  const Buffer zeroes(4096);
  for (const Signature& signature : found) {
    const uint64_t at = round_down(signature.offset, 4096);
    const uint64_t count = std::min<uint64_t>(zeroes.size(), top.size() - at);
    co_await top.write_at(at, std::span<const std::byte>(zeroes).first(count));
  }
  co_await top.flush();
}

Task<> write_zeroes(Disk& disk, uint64_t offset, uint64_t end) {
  if (offset == end) co_return;
  const Buffer zeroes(std::min(kAtOnce, end - offset));
  for (; offset < end; offset += std::min<uint64_t>(zeroes.size(), end - offset))
    co_await disk.write_at(
        offset, std::span<const std::byte>(zeroes).first(std::min(zeroes.size(), end - offset)));
}

Task<> write_refcounts(Disk& disk, const Header& header, uint64_t end) {
  const uint64_t used = end >> header.cluster_bits;
  const uint64_t first = header.refcount_table_offset +
                         (uint64_t{header.refcount_table_clusters} << header.cluster_bits);
  Buffer table(uint64_t{header.refcount_table_clusters} << header.cluster_bits);
  for (uint64_t at = first, block = 0; at < header.l1_offset; at += header.cluster(), block++) {
    store_be<uint64_t>(table, block * 8, at);
    Buffer bytes(header.cluster());
    const uint64_t start = block * header.refcounts_per_block();
    for (uint64_t i = 0; i < header.refcounts_per_block() && start + i < used; i++)
      set_refcount(bytes, i, header.refcount_order, 1);
    co_await disk.write_at(at, bytes);
  }
  co_await disk.write_at(header.refcount_table_offset, table);
}

// What the entry of a cluster says that has a place and nothing in it: where that place is
// known to read as zeroes it is data.
Link preallocated(const Header& header, uint64_t place, bool is_zero) {
  if (header.extended() || is_zero) return {place | kCopied, 0};
  return {place | kCopied | kZero, 0};
}

Task<> write_tables(Disk& disk, const Header& header, const Places& places, bool is_zero) {
  Buffer l1(places.l2 - header.l1_offset);
  for (uint64_t table = 0; places.l2 + (table << header.cluster_bits) < places.data; table++) {
    const uint64_t at = places.l2 + (table << header.cluster_bits);
    store_be<uint64_t>(l1, table * 8, at | kCopied);
    Buffer bytes(header.cluster());
    for (uint64_t i = 0; i < header.l2_entries(); i++) {
      const uint64_t cluster = table * header.l2_entries() + i;
      if (cluster >= header.clusters()) break;
      const uint64_t offset = cluster << header.cluster_bits;
      const uint64_t host = header.has_data_file() ? offset : places.data + offset;
      const Link link = preallocated(header, host, is_zero);
      store_link(header, bytes, i * header.l2_entry_bytes(), link);
    }
    co_await disk.write_at(at, bytes);
  }
  co_await disk.write_at(header.l1_offset, l1);
}

// Opens it and makes it zeroes, as long as the disk.
Task<std::shared_ptr<Disk>> make_data_file(const CreateRequest& request, const Header& header) {
  if (!header.has_data_file()) co_return nullptr;
  if (!request.references)
    throw Error(EINVAL, "The data is to be in " + header.data_file +
                            ", and no other files are opened here.");
  std::shared_ptr<Disk> data =
      co_await request.references->disk(*request.top, header.data_file, true);
  if (data->size() > kNewFile && !request.force)
    throw Error(EEXIST, data->name() + " is there and has " + std::to_string(data->size()) +
                            " bytes: to lose those and make it the data file, say --force.");
  co_await data->resize(0);
  co_await data->resize(round_up(header.size, data->block_size()));
  co_return data;
}

void require_fit(const std::vector<std::byte>& head, const Header& header) {
  if (head.size() > header.cluster())
    throw Error(ENAMETOOLONG,
                "The names of the backing file and the data file do not fit into a cluster of " +
                    human_size(header.cluster()) + ": give a larger cluster_size.");
}

}  // namespace

Task<> create(CreateRequest request) {
  Header header;
  refuse_options(request.options);
  take_version(request.options, header);
  take_cluster(request.options, header);
  take_features(request.options, header);
  const uint64_t asked = take_size(request.options, "size", request.size);
  const Preallocation preallocation = take_preallocation(request.options);
  BackingName backing;
  const std::string format = "qcow2";
  const uint64_t beneath = co_await take_backing(request, format, backing);
  header.backing_name = backing.file;
  header.backing_format = backing.format;
  refuse_others(request.options, "qcow2");
  require_sense(header, preallocation);
  header.size = round_up(asked ? asked : beneath, kSector);
  if (header.size == 0 || header.size > kMaxVirtualSize)
    throw Error(EINVAL, "A qcow2 image needs a size: say -o size=, from 512 bytes to 1024P.");
  const Places places = place(header, preallocation);
  const std::vector<std::byte> head = encode_all(header);
  require_fit(head, header);
  co_await clear_top(request, header);
  const std::shared_ptr<Disk> data = co_await make_data_file(request, header);
  Disk& top = *request.top;
  // What a file grows by reads as zeroes.
  bool is_zero = data || top.size() <= places.data;
  if (top.size() < places.end) co_await top.resize(places.end);
  Buffer first(header.cluster());
  co_await top.write_at(0, first);
  co_await top.flush();
  if (preallocation == Preallocation::written) {
    if (data) co_await write_zeroes(*data, 0, data->size());
    co_await write_zeroes(top, places.data, places.end);
    is_zero = true;
  }
  if (preallocation != Preallocation::off && !is_zero && header.version == 2)
    throw Error(EINVAL, top.name() +
                            " is not empty, and compat=0.10 has no zero flag: say "
                            "preallocation=full.");
  if (data) co_await data->flush();
  co_await write_refcounts(top, header, places.end);
  if (preallocation == Preallocation::off)
    co_await write_zeroes(top, header.l1_offset, places.end);
  else
    co_await write_tables(top, header, places, is_zero);
  co_await top.flush();
  std::ranges::copy(head, first.begin());
  co_await top.write_at(0, first);
  co_await top.flush();
  if (request.progress) request.progress(1, 1);
}

}  // namespace cowd::qcow2
