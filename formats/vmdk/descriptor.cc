// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/vmdk/descriptor.hh"

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "cowd/core/error.hh"

namespace cowd::vmdk {
namespace {

constexpr size_t kMaxExtents = 4096;
constexpr uint64_t kMaxSectors = 1ULL << 54;  // of an extent, and of all
constexpr std::string_view kBlanks = " \t\r";

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

bool is_quoted(std::string_view text) {
  return text.size() >= 2 && text.front() == '"' && text.back() == '"';
}

std::string_view unquoted(std::string_view text) {
  return is_quoted(text) ? text.substr(1, text.size() - 2) : text;
}

// For sentences: the text may be anything of any length.
std::string shown(std::string_view text) {
  std::string some(text.substr(0, 40));
  std::ranges::replace_if(
      some, [](char c) { return c < ' ' || c > '~'; }, '?');
  return some;
}

template <typename T>
std::optional<T> number(std::string_view text, int base) {
  T value{};
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (problem != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string_view take_word(std::string_view& line) {
  line = trimmed(line);
  size_t end = line.find_first_of(kBlanks);
  if (!line.empty() && line.front() == '"') {
    end = line.find('"', 1);
    if (end != std::string_view::npos) end++;
  }
  const std::string_view word = line.substr(0, end);
  line = end == std::string_view::npos ? std::string_view() : line.substr(end);
  return word;
}

bool is_extent(std::string_view line) {
  const std::string_view access = take_word(line);
  return access == "RW" || access == "RDONLY" || access == "NOACCESS";
}

class Parser {
 public:
  explicit Parser(const std::string& name) : name_(name) {}
  void line(std::string_view text);
  Descriptor done();

 private:
  void extent(std::string_view text);
  void value(std::string_view key, std::string_view text);
  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(EINVAL, name_ + ", a VMDK image, has a descriptor that cannot be read: " + what +
                            ". Check where it comes from, or convert it (qemu-img convert).");
  }

  const std::string& name_;
  Descriptor result_;
  uint64_t sectors_ = 0;  // of all extents
  bool has_cid_ = false;
};

void Parser::line(std::string_view text) {
  text = trimmed(text);
  if (text.empty() || text.front() == '#') return;
  if (is_extent(text)) return extent(text);
  const size_t equals = text.find('=');
  if (equals == std::string_view::npos) return;
  const std::string_view key = trimmed(text.substr(0, equals));
  const std::string_view said = trimmed(text.substr(equals + 1));
  if (!said.empty() && (said.front() == '"') != (said.back() == '"'))
    refuse("what " + shown(key) + " is has one quote, not two");
  value(key, unquoted(said));
}

void Parser::extent(std::string_view text) {
  const std::string which = "extent " + std::to_string(result_.extents.size());
  if (result_.extents.size() == kMaxExtents)
    refuse("it has more than " + std::to_string(kMaxExtents) + " extents");
  ExtentLine found;
  found.access = take_word(text);
  const std::string_view size = take_word(text);
  const auto sectors = number<uint64_t>(size, 10);
  if (!sectors || *sectors == 0 || *sectors > kMaxSectors - sectors_)
    refuse("the size of " + which + ", '" + shown(size) + "', is no number of sectors");
  found.type = take_word(text);
  const std::string_view file = take_word(text);
  if (found.type.empty() || (found.type != "ZERO" && file.empty()))
    refuse("the line of " + which + " is not complete");
  if (!file.empty() && (!is_quoted(file) || file.size() == 2))
    refuse("the file of " + which + ", " + shown(file) + ", is no name in quotes");
  found.file = unquoted(file);
  const std::string_view offset = take_word(text);
  const auto at = offset.empty() ? std::optional<uint64_t>(0) : number<uint64_t>(offset, 10);
  if (!at || *at > kMaxSectors)
    refuse("the offset of " + which + ", '" + shown(offset) + "', is no number of sectors");
  found.sectors = *sectors;
  found.offset = *at;
  sectors_ += *sectors;
  result_.extents.push_back(std::move(found));
}

void Parser::value(std::string_view key, std::string_view text) {
  const auto cid = [&] {
    const auto value = number<uint32_t>(text, 16);
    if (!value) refuse(shown(key) + "=" + shown(text) + " is no number");
    return *value;
  };
  if (key == "CID") {
    result_.cid = cid();
    has_cid_ = true;
  } else if (key == "parentCID") {
    result_.parent_cid = cid();
  } else if (key == "createType") {
    result_.create_type = text;
  } else if (key == "parentFileNameHint") {
    result_.parent = text;
  } else if (key == "version" && text != "1" && text != "2" && text != "3") {
    refuse("its version is " + shown(text) + ", and only 1 to 3 are known");
  }
}

Descriptor Parser::done() {
  if (!has_cid_) refuse("it has no CID");
  if (result_.create_type.empty()) refuse("it has no createType");
  return std::move(result_);
}

}  // namespace

Descriptor parse_descriptor(const std::string& name, std::string_view text) {
  text = text.substr(0, text.find('\0'));
  Parser parser(name);
  while (!text.empty()) {
    const size_t end = text.find('\n');
    parser.line(text.substr(0, end));
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  }
  return parser.done();
}

std::optional<CidPlace> find_cid(std::string_view text) {
  text = text.substr(0, text.find('\0'));
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    if (text.substr(at).starts_with("CID=")) {
      const std::string_view digits = trimmed(text.substr(at + 4, end - at - 4));
      if (digits.empty() || !number<uint32_t>(digits, 16)) return std::nullopt;
      return CidPlace{static_cast<size_t>(digits.data() - text.data()), digits.size()};
    }
    at = end + 1;
  }
  return std::nullopt;
}

std::string make_descriptor(const std::string& type, const std::string& lines, uint64_t sectors,
                            uint32_t cid) {
  const uint64_t heads = 16, per_track = 63;
  const uint64_t cylinders = std::min<uint64_t>(sectors / (heads * per_track), 16383);
  char digits[9];
  std::snprintf(digits, sizeof digits, "%08x", cid);
  return std::string("# Disk DescriptorFile\nversion=1\nCID=") + digits +
         "\nparentCID=ffffffff\ncreateType=\"" + type + "\"\n\n# Extent description\n" + lines +
         "\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = "
         "\"" +
         std::to_string(cylinders) +
         "\"\nddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\n"
         "ddb.adapterType = \"ide\"\n";
}

}  // namespace cowd::vmdk
