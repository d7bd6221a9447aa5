// SPDX-License-Identifier: GPL-2.0-or-later
// Makes an image. A sparse extent is
//   header | descriptor | redundant directory and tables | directory and tables | grains
// with the descriptor only in a monolithicSparse one. All tables are there from the beginning,
// as VMware makes them; the header comes last, and a descriptor in a file of its own after all
// that it names.
#include <algorithm>
#include <array>
#include <cstdio>
#include <random>
#include <string_view>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/options.hh"
#include "formats/growing/making.hh"
#include "formats/vmdk/vmdk.hh"

namespace cowd::vmdk {
namespace {

constexpr uint64_t kDescriptorSectors = 20;
constexpr uint64_t kMaxBytes = 2ULL << 40;
constexpr uint64_t kGrainBytes = kDefaultGrain * kSector;
constexpr uint64_t kSplit = 2047 << 11;  // sectors of an extent, of those called 2 GB

struct Kind {
  std::string_view name;
  bool sparse;
  bool split;
};
constexpr std::array<Kind, 4> kKinds{{{"monolithicSparse", true, false},
                                      {"monolithicFlat", false, false},
                                      {"twoGbMaxExtentSparse", true, true},
                                      {"twoGbMaxExtentFlat", false, true}}};

Kind take_kind(Options& options) {
  const auto option = options.extract("subformat");
  if (option.empty()) return kKinds.front();
  for (const Kind& kind : kKinds)
    if (option.mapped() == kind.name) return kind;
  throw Error(EINVAL, "subformat=" + option.mapped() +
                          " is no kind of VMDK that can be made: say monolithicSparse, "
                          "monolithicFlat, twoGbMaxExtentSparse or twoGbMaxExtentFlat.");
}

void require_possible(const Kind& kind, uint64_t size, const std::string& name) {
  if (kind.sparse && (size % kGrainBytes != 0 || (!kind.split && size > kMaxBytes)))
    throw Error(EINVAL, "A VMDK of " + human_size(size) + " in " + name +
                            " cannot be: give a multiple of 64 KiB, up to 2 TiB.");
  if (kind.split && size > kMaxParts * kSplit * kSector)
    throw Error(EINVAL, "A VMDK of " + human_size(size) + " in " + name +
                            " would have too many files: with 2 GB each it ends at " +
                            human_size(kMaxParts * kSplit * kSector) +
                            ". Use subformat=monolithicSparse or monolithicFlat.");
}

SparseHeader plan(uint64_t sectors, bool described) {
  SparseHeader header;
  header.capacity = sectors;
  header.descriptor = described ? 1 : 0;
  header.descriptor_sectors = described ? kDescriptorSectors : 0;
  const uint64_t directory = (header.tables() * 4 + kSector - 1) / kSector;
  const uint64_t both = directory + header.tables() * header.table_sectors();
  header.redundant_directory = 1 + header.descriptor_sectors;
  header.directory = header.redundant_directory + both;
  header.overhead = round_up(header.directory + both, header.grain);
  return header;
}

Task<> write_directory(Disk& disk, const SparseHeader& header, uint64_t at) {
  const uint64_t sectors = (header.tables() * 4 + kSector - 1) / kSector;
  Buffer bytes(sectors * kSector);
  for (uint64_t i = 0; i < header.tables(); i++)
    store_le<uint32_t>(bytes, i * 4,
                       static_cast<uint32_t>(at + sectors + i * header.table_sectors()));
  co_await write_any(disk, at * kSector, bytes);
}

Task<> write_extent(Disk& disk, const SparseHeader& header, const std::string& text) {
  co_await growing::make_room(disk, header.overhead * kSector);
  co_await growing::write_zeroes(disk, 0, header.overhead * kSector);
  co_await write_directory(disk, header, header.redundant_directory);
  co_await write_directory(disk, header, header.directory);
  co_await write_any(disk, header.descriptor * kSector, std::as_bytes(std::span(text)));
  co_await disk.flush();
  Buffer bytes(kSector);
  encode(header, bytes);
  co_await write_any(disk, 0, bytes);
  co_await disk.flush();
}

uint32_t new_cid() {
  std::random_device random;
  uint32_t cid = 0;
  while (cid == 0 || cid >= 0xfffffffe) cid = random();
  return cid;
}

// What stands between quotes in the descriptor.
std::string file_name(const std::string& path) {
  std::string name = path.substr(path.rfind('/') + 1);
  std::erase_if(name, [](char c) { return c == '"' || static_cast<unsigned char>(c) < ' '; });
  return name.substr(0, 255);
}

// As qemu-img names them: disk-flat.vmdk, disk-s001.vmdk, disk-f001.vmdk.
std::string extent_name(const Kind& kind, const std::string& top, size_t index) {
  const size_t dot = std::min(top.rfind('.'), top.size());
  char number[16];
  std::snprintf(number, sizeof number, "-%c%03zu", kind.sparse ? 's' : 'f', index + 1);
  return top.substr(0, dot) + (kind.split ? number : "-flat") + top.substr(dot);
}

std::string line_of(const Kind& kind, const std::string& file, uint64_t sectors) {
  return "RW " + std::to_string(sectors) + (kind.sparse ? " SPARSE \"" : " FLAT \"") + file +
         (kind.sparse ? "\"\n" : "\" 0\n");
}

Task<> make_monolithic_sparse(const CreateRequest& request, const Kind& kind, uint64_t sectors) {
  const std::string line = line_of(kind, file_name(request.top->name()), sectors);
  const SparseHeader header = plan(sectors, true);
  const std::string text = make_descriptor(std::string(kind.name), line, sectors, new_cid());
  co_await write_extent(*request.top, header, text);
}

Task<> make_extent(const CreateRequest& request, const Kind& kind, const std::string& name,
                   uint64_t sectors) {
  const std::shared_ptr<Disk> disk =
      co_await request.references->make(*request.top, name, request.force);
  if (kind.sparse) {
    const SparseHeader header = plan(sectors, false);
    const std::string no_text;
    co_await write_extent(*disk, header, no_text);
  } else {
    co_await disk->resize(sectors * kSector);
    co_await disk->flush();
  }
}

// To the end of the file, which is a whole block, with empty lines.
Task<> write_descriptor(Disk& top, std::string text) {
  co_await growing::make_room(top, text.size());
  text.resize(round_up(text.size(), top.block_size()), '\n');
  co_await write_any(top, 0, std::as_bytes(std::span(text)));
  co_await top.flush();
}

Task<> make_in_files(const CreateRequest& request, const Kind& kind, uint64_t sectors) {
  const std::string& path = request.top->name();
  const std::string name = file_name(path);
  if (!path.ends_with(name) || name.empty())
    throw Error(EINVAL, path +
                            " cannot be the name of a VMDK in several files: it has quotes or "
                            "control characters, or is too long.");
  if (!request.references)
    throw Error(EINVAL, path + " would name other files, and those are not made here.");
  std::string lines;
  size_t index = 0;
  for (uint64_t at = 0; at < sectors; index++) {
    const uint64_t part = kind.split ? std::min(sectors - at, kSplit) : sectors;
    const std::string file = extent_name(kind, name, index);
    co_await make_extent(request, kind, file, part);
    lines += line_of(kind, file, part);
    at += part;
    if (request.progress) request.progress(at, sectors);
  }
  std::string text = make_descriptor(std::string(kind.name), lines, sectors, new_cid());
  co_await write_descriptor(*request.top, std::move(text));
}

}  // namespace

Task<> create(CreateRequest request) {
  const Kind kind = take_kind(request.options);
  const uint64_t size = growing::wanted_size(request);
  refuse_others(request.options, "vmdk");
  require_possible(kind, size, request.top->name());
  co_await growing::clear_top(request, "a VMDK image");
  if (kind.sparse && !kind.split)
    co_await make_monolithic_sparse(request, kind, size / kSector);
  else
    co_await make_in_files(request, kind, size / kSector);
  if (request.progress) request.progress(1, 1);
}

}  // namespace cowd::vmdk
