// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/qcow/header.hh"

#include <algorithm>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"

namespace cowd::qcow {
namespace {

constexpr uint32_t kMagic = 0x514649fb;
constexpr uint32_t kMaxFormat = 32;

std::string problem_with(const Header& header, uint32_t encryption, uint64_t file_bytes) {
  if (encryption != 0) return "it is encrypted, and such are not served";
  if (header.size == 0 || header.size % kSector != 0)
    return "the size of its disk, " + std::to_string(header.size) + " bytes, is no multiple of 512";
  if (header.cluster_bits < 9 || header.cluster_bits > 16)
    return "its clusters have 2 to the " + std::to_string(header.cluster_bits) +
           " bytes, and 9 to 16 are allowed";
  if (header.table_bits < 6 || header.table_bits > 13)
    return "its tables have 2 to the " + std::to_string(header.table_bits) +
           " entries, and 6 to 13 are allowed";
  if (header.size > 1ULL << 62 || header.tables() * 8 > kMaxFirstLevel)
    return "its first-level table has more than 32 MiB";
  if (header.first_level < kHeaderBytes || header.first_level > file_bytes ||
      header.tables() * 8 > file_bytes - header.first_level)
    return "its first-level table is not in the file; it may have been cut off";
  if (!header.has_backing()) return "";
  if (header.backing_bytes > kMaxBackingName || header.format_bytes > kMaxFormat ||
      header.backing_offset > file_bytes || header.backing_end() > file_bytes)
    return "the name of its backing file is not in the file, or too long";
  if (header.backing_offset < kHeaderBytes || (header.backing_offset < header.first_level_end() &&
                                               header.backing_end() > header.first_level))
    return "the name of its backing file is on its header or its first-level table";
  return "";
}

}  // namespace

bool is_qcow(std::span<const std::byte> head) {
  return head.size() >= 8 && load_be<uint32_t>(head, 0) == kMagic &&
         load_be<uint32_t>(head, 4) == 1;
}

Task<Header> read_header(Disk& disk) {
  Buffer bytes(kSector);
  co_await read_any(disk, 0, bytes);
  const auto refuse = [&disk](const std::string& what) {
    return Error(EINVAL, disk.name() + " cannot be served as a qcow image: " + what +
                             ". Check where it comes from, or convert it (qemu-img convert).");
  };
  if (load_be<uint32_t>(bytes, 0) != kMagic) throw refuse("it does not begin with QFI");
  if (const auto version = load_be<uint32_t>(bytes, 4); version != 1)
    throw refuse("its version is " + std::to_string(version) +
                 "; versions 2 and 3 are the format qcow2");
  Header header;
  header.backing_offset = load_be<uint64_t>(bytes, 8);
  header.backing_bytes = load_be<uint32_t>(bytes, 16);
  header.format_bytes = load_be<uint16_t>(bytes, 34);
  header.size = load_be<uint64_t>(bytes, 24);
  header.cluster_bits = std::to_integer<uint32_t>(bytes[32]);
  header.table_bits = std::to_integer<uint32_t>(bytes[33]);
  header.first_level = load_be<uint64_t>(bytes, 40);
  const auto encryption = load_be<uint32_t>(bytes, 36);
  if (const std::string problem = problem_with(header, encryption, disk.size()); !problem.empty())
    throw refuse(problem);
  co_return header;
}

void encode(const Header& header, std::span<std::byte> out) {
  std::ranges::fill(out, std::byte{0});
  store_be<uint32_t>(out, 0, kMagic);
  store_be<uint32_t>(out, 4, 1);
  encode_backing(header, out);
  store_be<uint64_t>(out, 24, header.size);
  out[32] = std::byte(header.cluster_bits);
  out[33] = std::byte(header.table_bits);
  store_be<uint64_t>(out, 40, header.first_level);
}

void encode_backing(const Header& header, std::span<std::byte> head) {
  store_be<uint64_t>(head, 8, header.backing_offset);
  store_be<uint32_t>(head, 16, header.backing_bytes);
  store_be<uint16_t>(head, 34, header.format_bytes);
}

Task<BackingName> read_backing_name(Disk& disk, const Header& header) {
  BackingName name;
  if (!header.has_backing()) co_return name;
  Buffer bytes(header.backing_bytes + header.format_bytes);
  co_await read_any(disk, header.backing_offset, bytes);
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  name.file = text.substr(0, header.backing_bytes);
  name.format = text.substr(header.backing_bytes);
  co_return name;
}

void set_backing(Header& header, const BackingName& name, uint64_t offset) {
  if (name.format.size() > kMaxFormat)
    throw Error(ENAMETOOLONG, "No format is called " + name.format + ": say raw, qcow, qcow2, ...");
  header.backing_offset = offset;
  header.backing_bytes = static_cast<uint32_t>(name.file.size());
  header.format_bytes = static_cast<uint16_t>(name.format.size());
}

std::string text_of(const BackingName& name) { return name.file + name.format; }

}  // namespace cowd::qcow
