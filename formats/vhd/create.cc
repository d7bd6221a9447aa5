// SPDX-License-Identifier: GPL-2.0-or-later
// Makes an image, in an order that leaves none or a whole one after a crash:
// what lies there is made unrecognisable, flush; table and dynamic header, flush; footers.
#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/any_offset.hh"
#include "formats/common/options.hh"
#include "formats/growing/making.hh"
#include "formats/vhd/footer.hh"
#include "formats/vhd/vhd.hh"

namespace cowd::vhd {
namespace {

constexpr uint64_t kLocatorOffset = kFooterBytes + kHeaderBytes;  // if there is one
constexpr size_t kMaxPath = 1024, kMaxName = 255;

Type take_type(Options& options) {
  const auto option = options.extract("type");
  if (option.empty() || option.mapped() == "dynamic") return Type::dynamic;
  for (const Type type : {Type::fixed, Type::differencing})
    if (option.mapped() == name_of(type)) return type;
  throw Error(EINVAL, "type=" + option.mapped() +
                          " is no type of VHD: say dynamic, fixed or differencing.");
}

struct Wanted {
  Type type = Type::dynamic;
  Header parent;       // of a differencing image: what its header says of it
  Buffer locator;      // and the path of it
  uint64_t size = 0;   // bytes, of the disk
  uint64_t block = 0;  // bytes

  uint64_t blocks() const { return (size + block - 1) / block; }
  uint64_t table_offset() const { return kLocatorOffset + locator.size(); }
  uint64_t table_bytes() const { return round_up(blocks() * 4, kSector); }
  // With both footers.
  uint64_t file_bytes() const {
    return type == Type::fixed ? size + kFooterBytes
                               : table_offset() + table_bytes() + kFooterBytes;
  }
};

Error no_parent(const CreateRequest& request, const std::string& why) {
  return Error(EINVAL,
               "The differencing VHD in " + request.top->name() + " cannot be made: " + why);
}

// Its size is that of the parent, which is looked for as it will be when the image is used.
Task<> take_parent(CreateRequest& request, Wanted& wanted) {
  const auto option = request.options.extract("parent");
  const std::string path = option.empty() ? "" : option.mapped();
  if (path.empty()) throw no_parent(request, "its parent is not given: say parent=FILE.");
  if (path[0] == '/')
    throw no_parent(request, "its parent " + path +
                                 " is given by an absolute path, and the image has a relative one: "
                                 "give the path from the folder of the image on.");
  if (!request.references) throw no_parent(request, "files that it names are not opened here.");
  const std::unique_ptr<Image> parent =
      co_await request.references->image(*request.top, path, "vhd");
  const nlohmann::json said = parent->stats();
  const uint64_t size = parent->sectors() * kSector;
  if (request.size != 0 && request.size != size)
    throw no_parent(request, "it has the size of its parent, " + human_size(size) + ", and " +
                                 human_size(request.size) + " is given: give none.");
  request.size = size;
  const auto uuid = parse_uuid(said.value("uuid", ""));
  const std::string name = path.substr(path.rfind('/') + 1);
  std::string relative = ".\\" + path;
  std::ranges::replace(relative, '/', '\\');
  const auto locator = utf16(relative, false);
  if (!uuid || !locator || relative.size() > kMaxPath || name.size() > kMaxName)
    throw no_parent(request, "the name of its parent is no valid UTF-8, or too long: rename it.");
  wanted.parent.parent = *uuid;
  wanted.parent.parent_name = name;
  wanted.parent.parent_time = said.value("changed", uint32_t{0});
  wanted.locator = *locator;
  wanted.parent.locators[0] = {kRelativePath, 0, static_cast<uint32_t>(locator->size()),
                               kLocatorOffset};
  wanted.locator.resize(round_up(wanted.locator.size(), kSector));
  wanted.parent.locators[0].space = static_cast<uint32_t>(wanted.locator.size());
}

Task<Wanted> take_wanted(CreateRequest& request) {
  Wanted wanted;
  wanted.type = take_type(request.options);
  wanted.block = take_size(request.options, "block", kBlockBytes);
  if (wanted.type == Type::differencing) {
    if (const uint64_t size = take_size(request.options, "size", 0)) request.size = size;
    co_await take_parent(request, wanted);
  }
  wanted.size = growing::wanted_size(request);
  const std::string& name = request.top->name();
  if (wanted.block < kMinBlockBytes || wanted.block > kMaxBlockBytes ||
      (wanted.block & (wanted.block - 1)) != 0)
    throw Error(EINVAL, "The VHD in " + name + " cannot have blocks of " +
                            human_size(wanted.block) +
                            ": give a power of two from 64 KiB to 32 MiB, or none for 2 MiB.");
  if (wanted.size > kMaxBytes || wanted.blocks() > kMaxBlocks)
    throw Error(EFBIG, "A VHD of " + human_size(wanted.size) + " with blocks of " +
                           human_size(wanted.block) + " in " + name +
                           " cannot be: they end at 2040 GiB and 8388608 blocks. Use the format "
                           "qcow2 or dscow.");
  co_return wanted;
}

Footer make_footer(const Wanted& wanted) {
  Footer footer;
  footer.type = wanted.type;
  footer.header_offset = wanted.type == Type::fixed ? kNoOffset : kFooterBytes;
  footer.size = footer.original_size = wanted.size;
  footer.time = static_cast<uint32_t>(std::time(nullptr) - kEpoch);
  // Readers decide by the creator whether the size counts or the geometry. Of this one it is
  // the size, in each of them that we know.
  footer.creator = {'w', 'i', 'n', ' '};
  std::random_device random;
  for (std::byte& each : footer.uuid) each = std::byte(random());
  encode(footer);
  return footer;
}

Task<> write_blocks(Disk& top, const Wanted& wanted, const Footer& footer) {
  Header header = wanted.parent;
  header.table_offset = wanted.table_offset();
  header.entries = static_cast<uint32_t>(wanted.blocks());
  header.block_bytes = static_cast<uint32_t>(wanted.block);
  Buffer head(wanted.table_offset() + wanted.table_bytes(), std::byte{0xff});
  encode(header, std::span<std::byte>(head).subspan(kFooterBytes, kHeaderBytes));
  std::ranges::copy(wanted.locator, head.begin() + kLocatorOffset);
  std::fill_n(head.begin(), kFooterBytes, std::byte{0});
  co_await write_any(top, 0, head);
  co_await write_any(top, head.size(), footer.raw);
  co_await top.flush();
  co_await write_any(top, 0, footer.raw);
}

}  // namespace

Task<> create(CreateRequest request) {
  const Wanted wanted = co_await take_wanted(request);
  refuse_others(request.options, "vhd");
  Disk& top = *request.top;
  co_await growing::clear_top(request, "a VHD image");
  co_await growing::make_room(top, wanted.file_bytes());
  if (wanted.type == Type::fixed && top.size() != wanted.file_bytes())
    throw Error(EINVAL,
                top.name() + " has " + std::to_string(top.size()) +
                    " bytes: a fixed VHD ends where its device ends, so the disk must have " +
                    std::to_string(top.size() - kFooterBytes) + " bytes here.");
  const Footer footer = make_footer(wanted);
  if (wanted.type != Type::fixed) co_await write_blocks(top, wanted, footer);
  co_await write_any(top, top.size() - kFooterBytes, footer.raw);
  co_await top.flush();
  if (request.progress) request.progress(1, 1);
}

}  // namespace cowd::vhd
