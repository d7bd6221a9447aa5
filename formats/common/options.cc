// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/common/options.hh"

#include <charconv>
#include <string_view>

#include "cowd/core/error.hh"

namespace cowd {
namespace {

constexpr std::string_view kUnits = "KMGTP";

// How far to shift for a suffix, or -1.
int shift_of(std::string_view suffix) {
  if (suffix.empty()) return 0;
  const char first = suffix.front();
  const size_t unit =
      kUnits.find(first >= 'a' && first <= 'z' ? static_cast<char>(first - 'a' + 'A') : first);
  const std::string_view rest = suffix.substr(1);
  if (unit == std::string_view::npos || !(rest.empty() || rest == "iB")) return -1;
  return 10 * (static_cast<int>(unit) + 1);
}

}  // namespace

uint64_t parse_size(const std::string& option, const std::string& text) {
  uint64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, problem] = std::from_chars(text.data(), end, number);
  const int shift = shift_of(std::string_view(stop, static_cast<size_t>(end - stop)));
  if (problem != std::errc() || shift < 0 || (number << shift) >> shift != number)
    throw Error(
        EINVAL,
        "Option " + option + "=" + text +
            " is not a size: give a whole number of bytes, or one with K, M, G, T or P after it.");
  return number << shift;
}

uint64_t take_size(Options& options, const std::string& name, uint64_t otherwise) {
  const auto found = options.find(name);
  if (found == options.end()) return otherwise;
  const uint64_t value = parse_size(name, found->second);
  options.erase(found);
  return value;
}

std::string take_text(Options& options, const std::string& name, const std::string& otherwise) {
  const auto found = options.find(name);
  if (found == options.end()) return otherwise;
  std::string value = found->second;
  options.erase(found);
  return value;
}

void refuse_others(const Options& options, const std::string& format) {
  if (options.empty()) return;
  throw Error(EINVAL, "Option " + options.begin()->first + " is not one of the format " + format +
                          ": 'cowctl create -o help' lists those it has.");
}

std::string human_size(uint64_t bytes) {
  int unit = -1;
  while (bytes != 0 && bytes % 1024 == 0 && unit + 1 < static_cast<int>(kUnits.size())) {
    bytes /= 1024;
    unit++;
  }
  return std::to_string(bytes) +
         (unit < 0 ? " bytes" : std::string(" ") + kUnits[static_cast<size_t>(unit)] + "iB");
}

}  // namespace cowd
