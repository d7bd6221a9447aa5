// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/common/signatures.hh"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "formats/common/bytes.hh"

namespace cowd {
namespace {

using namespace std::string_view_literals;

struct Known {
  const char* what;
  uint32_t offset;
  std::string_view magic;
  uint32_t uuid;  // offset of 16 bytes; 0: none in binary
  bool image = false;
};

constexpr Known kKnown[] = {
    {"a dscow store", 0, "dscow\x1a\r\n"sv, 0, true},
    {"a dscow store", 4096, "dscow\x1a\r\n"sv, 0, true},
    {"an ext2/3/4 file system", 1080, "\x53\xef"sv, 1128},
    {"an XFS file system", 0, "XFSB"sv, 32},
    {"a btrfs file system", 65600, "_BHRfS_M"sv, 65568},
    {"a squashfs file system", 0, "hsqs"sv, 0},
    {"an ISO 9660 file system", 32769, "CD001"sv, 0},
    {"an F2FS file system", 1024, "\x10\x20\xf5\xf2"sv, 0},
    {"swap space", 4086, "SWAPSPACE2"sv, 1036},
    {"a LUKS volume", 0, "LUKS\xba\xbe"sv, 0},
    {"an LVM physical volume", 0, "LABELONE"sv, 0},
    {"an LVM physical volume", 512, "LABELONE"sv, 0},
    {"an LVM physical volume", 1024, "LABELONE"sv, 0},
    {"an LVM physical volume", 1536, "LABELONE"sv, 0},
    {"a member of a software RAID", 4096, "\xfc\x4e\x2b\xa9"sv, 4112},
    {"a member of a software RAID", 0, "\xfc\x4e\x2b\xa9"sv, 16},
    {"a GUID partition table", 512, "EFI PART"sv, 568},
    {"a GUID partition table", 4096, "EFI PART"sv, 4152},
    {"a qcow2 image", 0, "QFI\xfb"sv, 0, true},
    {"a VMDK image", 0, "KDMV"sv, 0, true},
    {"a VMDK image", 0, "COWD"sv, 0, true},
    {"a VMDK image", 0, "# Disk DescriptorFile"sv, 0, true},
    {"a VHD image", 0, "conectix"sv, 0, true},
    {"a VHDX image", 0, "vhdxfile"sv, 0, true},
    {"a boot sector or a partition table", 510, "\x55\xaa"sv, 0},
};

bool matches(const Known& known, std::span<const std::byte> head) {
  return known.offset + known.magic.size() <= head.size() &&
         std::memcmp(head.data() + known.offset, known.magic.data(), known.magic.size()) == 0;
}

}  // namespace

std::vector<Signature> find_signatures(std::span<const std::byte> head) {
  std::vector<Signature> found;
  for (const Known& known : kKnown)
    if (matches(known, head)) found.push_back({known.what, known.offset, known.image});
  return found;
}

Task<std::vector<Signature>> find_signatures(Disk& disk) {
  Buffer head(std::min<uint64_t>(kSignatureSpan, disk.size()));
  co_await disk.read_at(0, head);
  co_return find_signatures(head);
}

Uuid find_uuid(std::span<const std::byte> head) {
  Uuid uuid{};
  for (const Known& known : kKnown) {
    if (known.uuid == 0 || known.uuid + uuid.size() > head.size() || !matches(known, head))
      continue;
    std::copy_n(head.begin() + known.uuid, uuid.size(), uuid.begin());
    break;
  }
  return uuid;
}

std::string to_string(const Uuid& uuid) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < uuid.size(); i++) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += kDigits[std::to_integer<unsigned>(uuid[i]) >> 4];
    text += kDigits[std::to_integer<unsigned>(uuid[i]) & 15];
  }
  return text;
}

std::optional<Uuid> parse_uuid(std::string_view text) {
  Uuid uuid{};
  if (text.size() != 36) return std::nullopt;
  for (size_t at = 0, digit = 0; at < text.size(); at++) {
    const bool dash = at == 8 || at == 13 || at == 18 || at == 23;
    const char c = text[at];
    if (dash != (c == '-')) return std::nullopt;
    if (dash) continue;
    const int value = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (value < 0) return std::nullopt;
    uuid[digit / 2] |= std::byte(value << (digit % 2 ? 0 : 4));
    digit++;
  }
  return uuid;
}

}  // namespace cowd
