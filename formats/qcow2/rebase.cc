// SPDX-License-Identifier: GPL-2.0-or-later
// Writes another backing file into the header, or none.
//
// The name's place and length are in the header's fields, the format is in an extension behind
// them, and both must change at once. What is written at once is a block of the disk. So:
//   1. the new name is written where nothing of the old header lies; flush
//   2. the first block is written: fields and extensions; flush. This is the change
// What the extensions need beyond the first block must be there already, byte for byte, or 1
// would change what still counts: mostly they end before. The table of feature names, which
// nobody needs, is left out where it does not fit; all other extensions are kept as they are.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/backing.hh"
#include "formats/common/bytes.hh"
#include "formats/qcow2/operations.hh"

namespace cowd::qcow2 {
namespace {

// "Header extensions"
constexpr uint32_t kEndExtension = 0;
constexpr uint32_t kBackingFormat = 0xe2792aca;
constexpr uint32_t kFeatureNames = 0x6803f857;
constexpr uint64_t kKnownAutoclear = kBitmaps | kRawExternal;

struct Extension {
  uint32_t type = 0;
  std::vector<std::byte> data;
};

// `end`: behind the last of them, in bytes.
std::vector<Extension> read_extensions(const Header& header, std::span<const std::byte> head,
                                       uint64_t* end) {
  const uint64_t limit =
      header.backing_name_offset ? header.backing_name_offset : uint64_t{head.size()};
  std::vector<Extension> all;
  uint64_t at = header.length;
  while (at + 8 <= limit) {
    const auto type = load_be<uint32_t>(head, at);
    // Longer than its room: read_header() has refused that.
    const uint64_t length = std::min<uint64_t>(load_be<uint32_t>(head, at + 4), limit - at - 8);
    if (type == kEndExtension) {
      at += 8;
      break;
    }
    const auto data = head.subspan(at + 8, length);
    all.push_back({type, {data.begin(), data.end()}});
    at += 8 + round_up(length, 8);
  }
  *end = std::min(at, limit);
  return all;
}

void append(std::vector<std::byte>& head, uint32_t type, std::span<const std::byte> data) {
  const size_t at = head.size();
  head.resize(at + 8 + round_up(data.size(), 8));
  store_be<uint32_t>(head, at, type);
  store_be<uint32_t>(head, at + 4, static_cast<uint32_t>(data.size()));
  std::ranges::copy(data, head.begin() + static_cast<ptrdiff_t>(at + 8));
}

class Rewriter {
 public:
  Rewriter(Disk& disk, Header header, const RebaseRequest& request)
      : disk_(disk), header_(std::move(header)), request_(request) {}

  Task<> run() {
    old_.resize(round_up(header_.cluster(), disk_.block_size()));
    co_await read_any(disk_, 0, old_);
    const auto head = std::span<const std::byte>(old_).first(header_.cluster());
    extensions_ = read_extensions(header_, head, &extensions_end_);
    if (!plan(true) && !plan(false))
      throw Error(ENAMETOOLONG,
                  disk_.name() + ": the name '" + request_.file +
                      "' has no room in the first cluster of " + std::to_string(header_.cluster()) +
                      " bytes beside what is there: name it by a shorter path, or convert the "
                      "image to larger clusters with 'qemu-img convert'.");
    if (request_.dry) co_return;
    if (name_at_ >= block()) {
      co_await write_any(disk_, name_at_, std::as_bytes(std::span(request_.file)));
      co_await disk_.flush();
    }
    co_await disk_.write_at(0, std::span<const std::byte>(next_).first(block()));
    co_await disk_.flush();
  }

 private:
  uint64_t block() const { return disk_.block_size(); }

  // Fields and extensions in next_, and where the name goes; false if it cannot be so.
  bool plan(bool with_feature_names) {
    std::vector<std::byte> head = extensions(with_feature_names);
    if (head.size() > header_.cluster()) return false;
    // Only the first block changes.
    for (uint64_t at = block(); at < head.size(); at++)
      if (at >= extensions_end_ || head[at] != old_[at]) return false;
    const std::optional<uint64_t> place = place_for_name(head.size());
    if (!place) return false;
    name_at_ = *place;
    put_fields(head);
    next_ = old_;
    std::ranges::copy(head, next_.begin());
    if (name_at_ < block()) {
      const auto name = std::as_bytes(std::span(request_.file));
      std::ranges::copy(name, next_.begin() + static_cast<ptrdiff_t>(name_at_));
    }
    return true;
  }

  // The format comes first: it must be in the first block.
  std::vector<std::byte> extensions(bool with_feature_names) const {
    std::vector<std::byte> head(old_.begin(),
                                old_.begin() + static_cast<ptrdiff_t>(header_.length));
    if (!request_.file.empty())
      append(head, kBackingFormat, std::as_bytes(std::span(request_.format)));
    for (const Extension& each : extensions_)
      if (each.type != kBackingFormat && each.type != kFeatureNames)
        append(head, each.type, each.data);
    for (const Extension& each : extensions_)
      if (each.type == kFeatureNames && with_feature_names) append(head, each.type, each.data);
    append(head, kEndExtension, {});
    return head;
  }

  // Wholly in the first block, or wholly behind all that counts now; 0 where there is no name.
  std::optional<uint64_t> place_for_name(uint64_t after) const {
    const uint64_t bytes = request_.file.size();
    if (bytes == 0) return 0;
    if (after + bytes <= std::min(block(), header_.cluster())) return after;
    const uint64_t used = std::max({after, block(), extensions_end_});
    const uint64_t from = header_.backing_name_offset;
    const uint64_t to = from + header_.backing_name_size;
    for (const uint64_t place : {used, std::max(used, to)})
      if (place + bytes <= header_.cluster() && (place + bytes <= from || place >= to))
        return place;
    return std::nullopt;
  }

  void put_fields(std::vector<std::byte>& head) const {
    store_be<uint64_t>(head, 8, name_at_);
    store_be<uint32_t>(head, 16, static_cast<uint32_t>(request_.file.size()));
    // A feature that is not known here may have to do with what lies beneath.
    if (header_.version > 2) store_be<uint64_t>(head, 88, header_.autoclear & kKnownAutoclear);
  }

  Disk& disk_;
  const Header header_;
  const RebaseRequest& request_;
  Buffer old_;  // the first cluster
  std::vector<Extension> extensions_;
  uint64_t extensions_end_ = 0;
  Buffer next_;
  uint64_t name_at_ = 0;
};

void require_sensible(const Header& header, const RebaseRequest& request) {
  require_nameable(request);
  const auto refuse = [&](int code, const std::string& what) {
    throw Error(code, request.top->name() + what);
  };
  if (header.incompatible & kCorrupt)
    refuse(EROFS,
           ": a program has marked the image as damaged, so it is not written to: run 'cowctl "
           "check --repair' first.");
  if (!request.file.empty() && header.autoclear & kRawExternal)
    refuse(EINVAL,
           " has its data in a raw file of its own, which shows nothing of a backing file: "
           "convert it with 'qemu-img convert' without data_file_raw.");
}

}  // namespace

Task<> rebase(RebaseRequest request) {
  Disk& top = *request.top;
  Header header = co_await read_header(top);
  require_sensible(header, request);
  Rewriter rewriter(top, std::move(header), request);
  co_await rewriter.run();
}

}  // namespace cowd::qcow2
