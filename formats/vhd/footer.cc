// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/vhd/footer.hh"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"

namespace cowd::vhd {
namespace {

using namespace std::string_view_literals;

constexpr auto kFooterMagic = "conectix"sv;
constexpr auto kHeaderMagic = "cxsparse"sv;
constexpr uint32_t kVersion = 0x00010000;
constexpr size_t kFooterSum = 64, kHeaderSum = 36;  // where the checksums are
constexpr size_t kParentName = 64, kParentNameBytes = 512, kLocators = 576, kLocatorBytes = 24;

bool begins_with(std::span<const std::byte> bytes, std::string_view magic) {
  return std::memcmp(bytes.data(), magic.data(), magic.size()) == 0;
}

// The complement of the sum of all bytes but those of the checksum itself.
uint32_t checksum(std::span<const std::byte> bytes, size_t at) {
  uint32_t sum = 0;
  for (size_t i = 0; i < bytes.size(); i++)
    if (i < at || i >= at + 4) sum += std::to_integer<uint32_t>(bytes[i]);
  return ~sum;
}

void put_utf8(std::string& text, uint32_t code) {
  const auto put = [&text](uint32_t byte) { text += static_cast<char>(byte); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6);
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
  }
}

}  // namespace

const char* name_of(Type type) {
  switch (type) {
    case Type::fixed: return "fixed";
    case Type::dynamic: return "dynamic";
    case Type::differencing: break;
  }
  return "differencing";
}

std::string problem_with_footer(std::span<const std::byte> bytes) {
  if (!begins_with(bytes, kFooterMagic)) return "it does not begin with 'conectix'";
  if (load_be<uint32_t>(bytes, kFooterSum) != checksum(bytes, kFooterSum))
    return "its checksum is wrong";
  if (load_be<uint32_t>(bytes, 12) >> 16 != kVersion >> 16)
    return "its version is " + std::to_string(load_be<uint32_t>(bytes, 12) >> 16) +
           ", and only 1 is known";
  const auto type = load_be<uint32_t>(bytes, 60);
  if (type < 2 || type > 4)
    return "the disk type " + std::to_string(type) + " is none of fixed, dynamic, differencing";
  const auto size = load_be<uint64_t>(bytes, 48);
  if (size == 0 || size % kSector != 0)
    return "the size of the disk, " + std::to_string(size) + " bytes, is no multiple of 512";
  return "";
}

Footer decode_footer(std::span<const std::byte> bytes) {
  Footer footer;
  footer.header_offset = load_be<uint64_t>(bytes, 16);
  footer.time = load_be<uint32_t>(bytes, 24);
  std::memcpy(footer.creator.data(), bytes.data() + 28, 4);
  footer.original_size = load_be<uint64_t>(bytes, 40);
  footer.size = load_be<uint64_t>(bytes, 48);
  footer.type = static_cast<Type>(load_be<uint32_t>(bytes, 60));
  std::copy_n(bytes.begin() + 68, footer.uuid.size(), footer.uuid.begin());
  std::copy_n(bytes.begin(), kFooterBytes, footer.raw.begin());
  return footer;
}

void encode(Footer& footer) {
  const std::span<std::byte> out(footer.raw);
  std::ranges::fill(out, std::byte{0});
  std::memcpy(out.data(), kFooterMagic.data(), kFooterMagic.size());
  store_be<uint32_t>(out, 8, 2);  // a reserved bit that is always set
  store_be<uint32_t>(out, 12, kVersion);
  store_be<uint64_t>(out, 16, footer.header_offset);
  store_be<uint32_t>(out, 24, footer.time);
  std::memcpy(out.data() + 28, footer.creator.data(), 4);
  store_be<uint32_t>(out, 32, 0x00010000);
  std::memcpy(out.data() + 36, "Wi2k", 4);
  store_be<uint64_t>(out, 40, footer.original_size);
  store_be<uint64_t>(out, 48, footer.size);
  store_be<uint32_t>(out, 56, geometry_of(footer.size));
  store_be<uint32_t>(out, 60, static_cast<uint32_t>(footer.type));
  std::ranges::copy(footer.uuid, out.begin() + 68);
  store_be<uint32_t>(out, kFooterSum, checksum(out, kFooterSum));
}

std::string problem_with_header(std::span<const std::byte> bytes) {
  if (!begins_with(bytes, kHeaderMagic)) return "it does not begin with 'cxsparse'";
  if (load_be<uint32_t>(bytes, kHeaderSum) != checksum(bytes, kHeaderSum))
    return "its checksum is wrong";
  if (load_be<uint32_t>(bytes, 24) >> 16 != kVersion >> 16)
    return "its version is " + std::to_string(load_be<uint32_t>(bytes, 24) >> 16) +
           ", and only 1 is known";
  return "";
}

Header decode_header(std::span<const std::byte> bytes) {
  Header header;
  header.table_offset = load_be<uint64_t>(bytes, 16);
  header.entries = load_be<uint32_t>(bytes, 28);
  header.block_bytes = load_be<uint32_t>(bytes, 32);
  std::copy_n(bytes.begin() + 40, header.parent.size(), header.parent.begin());
  header.parent_time = load_be<uint32_t>(bytes, 56);
  header.parent_name = utf8(bytes.subspan(kParentName, kParentNameBytes), true).value_or("");
  for (size_t i = 0; i < header.locators.size(); i++) {
    const size_t at = kLocators + i * kLocatorBytes;
    header.locators[i] = {load_be<uint32_t>(bytes, at), load_be<uint32_t>(bytes, at + 4),
                          load_be<uint32_t>(bytes, at + 8), load_be<uint64_t>(bytes, at + 16)};
  }
  return header;
}

void encode(const Header& header, std::span<std::byte> out) {
  std::ranges::fill(out, std::byte{0});
  std::memcpy(out.data(), kHeaderMagic.data(), kHeaderMagic.size());
  store_be<uint64_t>(out, 8, kNoOffset);
  store_be<uint64_t>(out, 16, header.table_offset);
  store_be<uint32_t>(out, 24, kVersion);
  store_be<uint32_t>(out, 28, header.entries);
  store_be<uint32_t>(out, 32, header.block_bytes);
  std::ranges::copy(header.parent, out.begin() + 40);
  store_be<uint32_t>(out, 56, header.parent_time);
  if (const auto name = utf16(header.parent_name, true))
    std::copy_n(name->begin(), std::min(name->size(), kParentNameBytes - 2),
                out.begin() + kParentName);
  for (size_t i = 0; i < header.locators.size(); i++) {
    const Locator& locator = header.locators[i];
    const size_t at = kLocators + i * kLocatorBytes;
    store_be<uint32_t>(out, at, locator.platform);
    store_be<uint32_t>(out, at + 4, locator.space);
    store_be<uint32_t>(out, at + 8, locator.length);
    store_be<uint64_t>(out, at + 16, locator.offset);
  }
  store_be<uint32_t>(out, kHeaderSum, checksum(out, kHeaderSum));
}

std::optional<std::string> utf8(std::span<const std::byte> utf16, bool big_endian) {
  std::string text;
  for (size_t i = 0; i + 1 < utf16.size(); i += 2) {
    const auto unit = [&](size_t at) -> uint32_t {
      return big_endian ? load_be<uint16_t>(utf16, at) : load_le<uint16_t>(utf16, at);
    };
    uint32_t code = unit(i);
    if (code == 0) break;
    if (code >= 0xd800 && code < 0xe000) {
      if (code >= 0xdc00 || i + 3 >= utf16.size()) return std::nullopt;
      i += 2;
      const uint32_t low = unit(i);
      if (low < 0xdc00 || low >= 0xe000) return std::nullopt;
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    put_utf8(text, code);
  }
  return text;
}

std::optional<Buffer> utf16(std::string_view utf8, bool big_endian) {
  Buffer bytes;
  const auto put = [&](uint32_t unit) {
    bytes.push_back(std::byte(big_endian ? unit >> 8 : unit));
    bytes.push_back(std::byte(big_endian ? unit : unit >> 8));
  };
  for (size_t i = 0; i < utf8.size();) {
    const auto first = static_cast<unsigned char>(utf8[i++]);
    const size_t more = first < 0x80 ? 0 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
    constexpr std::array<uint32_t, 4> least{1, 0x80, 0x800, 0x10000};
    uint32_t code = more == 0 ? first : first & 0x3fu >> more;
    if ((first >= 0x80 && first < 0xc0) || first > 0xf4 || more > utf8.size() - i)
      return std::nullopt;
    for (size_t left = more; left != 0; left--) {
      const auto next = static_cast<unsigned char>(utf8[i++]);
      if (next >> 6 != 2) return std::nullopt;
      code = code << 6 | (next & 0x3f);
    }
    if (code < least[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
      return std::nullopt;
    if (code < 0x10000) {
      put(code);
    } else {
      put(0xd800 + ((code - 0x10000) >> 10));
      put(0xdc00 + ((code - 0x10000) & 0x3ff));
    }
  }
  return bytes;
}

uint32_t geometry_of(uint64_t bytes) {
  const uint64_t total = std::min<uint64_t>(bytes / kSector, 65535ULL * 16 * 255);
  uint64_t per_track = 255, heads = 16, tracks = total / per_track;
  if (total < 65535ULL * 16 * 63) {
    per_track = 17;
    tracks = total / per_track;
    heads = std::max<uint64_t>((tracks + 1023) / 1024, 4);
    if (tracks >= heads * 1024 || heads > 16) {
      per_track = 31;
      heads = 16;
      tracks = total / per_track;
    }
    if (tracks >= heads * 1024) {
      per_track = 63;
      heads = 16;
      tracks = total / per_track;
    }
  }
  const uint64_t cylinders = tracks / heads;
  return static_cast<uint32_t>(cylinders << 16 | heads << 8 | per_track);
}

namespace {

// Of the same disk, found at the same place. Programs differ in the rest.
bool means_the_same(const Footer& one, const Footer& other) {
  return one.type == other.type && one.header_offset == other.header_offset &&
         one.size == other.size && one.uuid == other.uuid;
}

Task<Footers> find_footers(Disk& top) {
  Footers found;
  if (top.size() < kFooterBytes)
    throw Error(EINVAL, top.name() + " has " + std::to_string(top.size()) +
                            " bytes: too few for a VHD image.");
  Buffer end(kFooterBytes), start(kFooterBytes);
  co_await read_any(top, top.size() - kFooterBytes, end);
  co_await read_any(top, 0, start);
  found.problem_at_end = problem_with_footer(end);
  found.problem_at_start = problem_with_footer(start);
  if (found.problem_at_end.empty()) {
    found.current = decode_footer(end);
    if (found.current.type == Type::fixed)
      found.problem_at_start.clear();
    else if (found.problem_at_start.empty() && !std::ranges::equal(start, end))
      found.problem_at_start = "it says something else than the footer at the end";
    found.start_will_do = found.problem_at_start.empty() ||
                          (problem_with_footer(start).empty() &&
                           means_the_same(decode_footer(start), found.current));
    co_return found;
  }
  if (!found.problem_at_start.empty())
    throw Error(EINVAL, top.name() + " is no VHD image: it has no footer at its end (" +
                            found.problem_at_end +
                            "). Check the path; an image that was cut off must be copied again.");
  found.current = decode_footer(start);
  found.start_will_do = true;
  if (found.current.type == Type::fixed)
    throw Error(EINVAL, top.name() +
                            " is no VHD image: a fixed one has its footer at its end, and there is "
                            "none. On a volume, it must end where the volume ends.");
  co_return found;
}

}  // namespace

Task<Footers> read_footers(Disk& top) {
  Footers found = co_await find_footers(top);
  Footer& footer = found.current;
  footer.changed = footer.time;
  if (top.modified() > kEpoch) footer.changed = static_cast<uint32_t>(top.modified() - kEpoch);
  co_return found;
}

void require_good_start(const Disk& top, const Footers& footers) {
  if (footers.start_will_do) return;
  throw Error(EINVAL, top.name() +
                          ", a VHD image, can be read, but for writing its footer's copy at the "
                          "beginning is needed, and " +
                          footers.problem_at_start + ": repair it (cowctl check --repair).");
}

Task<Header> read_header(Disk& top, const Footer& footer) {
  const auto wrong = [&top](const std::string& what) {
    return Error(EINVAL, top.name() + ", a VHD image, is damaged: " + what +
                             ". Check where it comes from and copy it again.");
  };
  if (footer.header_offset >= top.size() || footer.header_offset % kSector != 0 ||
      top.size() - footer.header_offset < kHeaderBytes)
    throw wrong("its dynamic header is not in the file");
  if (footer.header_offset < kFooterBytes)
    throw wrong("its dynamic header is where its footer's copy must be");
  Buffer bytes(kHeaderBytes);
  co_await read_any(top, footer.header_offset, bytes);
  if (const std::string problem = problem_with_header(bytes); !problem.empty())
    throw wrong("its dynamic header is not valid, " + problem);
  const Header header = decode_header(bytes);
  if (header.block_bytes < 4096 || header.block_bytes > kMaxBlockBytes ||
      (header.block_bytes & (header.block_bytes - 1)) != 0)
    throw Error(EINVAL, top.name() + " has blocks of " + std::to_string(header.block_bytes) +
                            " bytes, and only powers of two from 4 KiB to 32 MiB are served: "
                            "convert it (qemu-img convert).");
  const uint64_t needed = (footer.size + header.block_bytes - 1) / header.block_bytes;
  if (header.entries < needed)
    throw wrong("its block table has " + std::to_string(header.entries) + " entries and " +
                std::to_string(needed) + " blocks");
  if (needed > kMaxBlocks)
    throw Error(EINVAL, top.name() + " has " + std::to_string(needed) +
                            " blocks, and up to 8388608 are served: convert it to larger blocks.");
  if (header.table_offset % kSector != 0 || header.table_offset >= top.size() ||
      top.size() - header.table_offset < needed * 4)
    throw wrong("its block table is not in the file");
  if (header.table_offset < kFooterBytes ||
      (header.table_offset < footer.header_offset + kHeaderBytes &&
       footer.header_offset < header.table_offset + needed * 4))
    throw wrong("its block table lies on the headers");
  co_return header;
}

}  // namespace cowd::vhd
