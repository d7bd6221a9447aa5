// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/toml.hh"

#include <algorithm>
#include <cerrno>
#include <sstream>
#include <string_view>

#include "cowd/core/error.hh"
#include "cowd/core/utf8.hh"

namespace cowd {

namespace {

constexpr size_t kMaxSize = 1 << 20;
// toml11 calls itself for each bracket that is open and for each part of a dotted key. They may
// as well stand in strings or comments; no file of settings has so many of them anyway.
constexpr size_t kMaxBrackets = 512;  // in a file
constexpr size_t kMaxDotsInALine = 128;

[[noreturn]] void refuse(const std::string& file, size_t line, const std::string& what) {
  throw Error(EINVAL, file + " is not TOML: see its line " + std::to_string(line) + ". " + what);
}

void check(const std::string& text, const std::string& file) {
  if (text.size() > kMaxSize)
    throw Error(EINVAL, file + " is longer than 1 MiB, which no file of settings is.");
  size_t number = 0, brackets = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    ++number;
    if (!is_utf8(line)) refuse(file, number, "Its text has to be UTF-8.");
    brackets += static_cast<size_t>(
        std::count_if(line.begin(), line.end(), [](char c) { return c == '[' || c == '{'; }));
    if (brackets > kMaxBrackets ||
        std::count(line.begin(), line.end(), '.') > static_cast<ptrdiff_t>(kMaxDotsInALine))
      refuse(file, number, "There are too many brackets or dots for a file of settings.");
  }
}

}  // namespace

toml::value parse_toml(const std::string& text, const std::string& file) {
  check(text, file);
  std::istringstream in(text);
  try {
    return toml::parse(in, file);
  } catch (const toml::exception& e) {
    // Not e.what(), which shows the line.
    refuse(file, e.location().line(), "Text has to be in quotes.");
  } catch (const std::exception&) {
    throw Error(EINVAL, file + " is not TOML.");
  }
}

}  // namespace cowd
