// SPDX-License-Identifier: GPL-2.0-or-later
#include <algorithm>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/vmdk/vmdk.hh"

namespace cowd::vmdk {
namespace {

constexpr uint64_t kMaxText = 1 << 20;

Error refusal(const std::string& name, const std::string& what) {
  return Error(EINVAL, name + " cannot be served as a VMDK: " + what +
                           ". Check where it comes from, or convert it (qemu-img convert).");
}

// What kinds there are is said by the extents; this is what they are refused by.
const char* problem_with_type(const std::string& type) {
  if (type == "fullDevice" || type == "partitionedDevice" || type == "vmfsRaw" ||
      type == "vmfsRawDeviceMap" || type == "vmfsPassthroughRawDeviceMap")
    return "it stands for a whole device, which is to be named itself";
  if (type == "seSparse") return "the kind seSparse is not known here";
  return nullptr;
}

Task<std::string> read_text(Disk& disk, uint64_t offset, uint64_t bytes) {
  std::vector<std::byte> text(bytes);
  co_await read_any(disk, offset, text);
  co_return std::string(reinterpret_cast<const char*>(text.data()), text.size());
}

class Opener {
 public:
  Opener(std::shared_ptr<Disk> top, const Top& said, References* references, Use use,
         uint64_t cache_bytes)
      : top_(std::move(top)),
        said_(said),
        references_(references),
        use_(use),
        cache_bytes_(cache_bytes) {}
  Task<std::vector<Part>> run();

 private:
  Task<Part> open(const ExtentLine& line);
  Task<Part> sparse(Part part, const SparseHeader& header, uint64_t cache_bytes);

  const std::shared_ptr<Disk> top_;
  const Top& said_;
  References* const references_;
  const Use use_;
  const uint64_t cache_bytes_;
};

Task<Part> Opener::sparse(Part part, const SparseHeader& header, uint64_t cache_bytes) {
  if (header.capacity < part.range.len)
    throw refusal(part.disk->name(), "the extent has " + std::to_string(header.capacity) +
                                         " sectors, and the descriptor says " +
                                         std::to_string(part.range.len));
  part.sparse =
      std::make_unique<SparseExtent>(*part.disk, part.dest, part.range.sector, header, cache_bytes);
  co_await part.sparse->load();
  co_return std::move(part);
}

Task<Part> Opener::open(const ExtentLine& line) {
  Part part;
  part.range.len = line.sectors;
  part.zeroes = line.type == "ZERO";
  if (part.zeroes) co_return std::move(part);
  const bool flat = line.type == "FLAT" || line.type == "VMFS";
  if (!flat && line.type != "SPARSE" && line.type != "VMFSSPARSE")
    throw refusal(top_->name(), "it has an extent of the type " + line.type);
  if (line.access == "NOACCESS")
    throw refusal(top_->name(), "its extent " + line.file + " may not be read");
  if (!references_)
    throw refusal(top_->name(), "it lies in other files, which are not opened here");
  const bool write = use_ != Use::read && line.access == "RW";
  if (write && !flat && use_ == Use::write) {
    const References::Room room = room_of_extent;
    part.disk = co_await references_->growing(*top_, line.file, room);
  } else {
    part.disk = co_await references_->disk(*top_, line.file, write);
  }
  part.offset = line.offset;
  if (flat && (line.offset > part.disk->size() / kSector ||
               line.sectors > part.disk->size() / kSector - line.offset))
    throw refusal(part.disk->name(), "it is shorter than the descriptor says");
  co_return std::move(part);
}

Task<std::vector<Part>> Opener::run() {
  std::vector<Part> parts;
  if (said_.sparse) {
    Part whole;
    whole.range.len = said_.header.capacity;
    whole.disk = top_;
    Part loaded = co_await sparse(std::move(whole), said_.header, cache_bytes_);
    parts.push_back(std::move(loaded));
    co_return std::move(parts);
  }
  const std::vector<ExtentLine>& lines = said_.descriptor.extents;
  if (lines.empty()) throw refusal(top_->name(), "it names no extents");
  if (lines.size() > kMaxParts)
    throw refusal(top_->name(), "it has " + std::to_string(lines.size()) + " extents, and up to " +
                                    std::to_string(kMaxParts) + " are served");
  uint64_t grain = 0, at = 0;
  uint32_t dest = 0;
  for (const ExtentLine& line : lines) {
    Part part = co_await open(line);
    part.range.sector = at;
    if (part.disk) part.dest = dest++;
    if (part.disk && (line.type == "SPARSE" || line.type == "VMFSSPARSE")) {
      const SparseHeader header = co_await read_sparse_header(*part.disk);
      if ((grain != 0 && header.grain != grain) || at % header.grain != 0)
        throw refusal(part.disk->name(), "its grains do not fit those of the other extents");
      grain = header.grain;
      Part loaded = co_await sparse(std::move(part), header, cache_bytes_ / lines.size());
      part = std::move(loaded);
    }
    at += line.sectors;
    parts.push_back(std::move(part));
  }
  co_return std::move(parts);
}

}  // namespace

Task<Top> read_top(Disk& top) {
  Top said;
  Buffer head(kSector);
  co_await read_any(top, 0, head);
  said.sparse = is_sparse(head);
  if (said.sparse) {
    said.header = co_await read_sparse_header(top);
    if (said.header.cowd || said.header.descriptor == 0)
      throw refusal(top.name(), "it is an extent of an image; name the file that describes it");
    const uint64_t bytes = said.header.descriptor_sectors * kSector;
    if (said.header.descriptor_sectors > kMaxText / kSector ||
        said.header.descriptor >= top.size() / kSector)
      throw refusal(top.name(), "its descriptor is not in the file, or larger than 1 MiB");
    said.text.offset = said.header.descriptor * kSector;
    said.text.text = co_await read_text(top, said.text.offset, bytes);
  } else {
    const auto begins = [&head](std::string_view with) {
      return std::equal(with.begin(), with.end(), head.begin(),
                        [](char a, std::byte b) { return std::byte(a) == b; });
    };
    if (!begins("# Disk DescriptorFile") && !begins("version="))
      throw refusal(top.name(), "it is neither a sparse extent nor a descriptor");
    if (top.size() > kMaxText) throw refusal(top.name(), "its descriptor is larger than 1 MiB");
    said.text.text = co_await read_text(top, 0, top.size());
  }
  said.text.text.resize(std::min(said.text.text.find('\0'), said.text.text.size()));
  said.descriptor = parse_descriptor(top.name(), said.text.text);
  if (const char* problem = problem_with_type(said.descriptor.create_type))
    throw refusal(top.name(), problem);
  co_return said;
}

Task<std::vector<Part>> open_parts(std::shared_ptr<Disk> top, const Top& said,
                                   References* references, Use use, uint64_t cache_bytes) {
  Opener opener(std::move(top), said, references, use, cache_bytes);
  co_return co_await opener.run();
}

}  // namespace cowd::vmdk
