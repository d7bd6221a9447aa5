// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/units.hh"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>

#include "cowd/core/error.hh"

namespace cowd {

namespace {

constexpr std::string_view kUnits = "kMGTPE";

[[noreturn]] void refuse(std::string_view what, std::string_view text, const char* form) {
  throw Error(EINVAL,
              std::string(what) + " is '" + std::string(text) + "' but must be " + form + ".");
}

char upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; }

// How many times 1024: 0 for none or b; -1 for no unit. Accepts k, K, KB, KiB.
int unit_shift(std::string_view unit) {
  if (unit.empty() || unit == "b" || unit == "B") return 0;
  for (size_t i = 0; i < kUnits.size(); ++i) {
    if (upper(unit[0]) != upper(kUnits[i])) continue;
    const auto rest = unit.substr(1);
    const bool known = rest.empty() || rest == "b" || rest == "B" || rest == "iB";
    return known ? static_cast<int>(i + 1) * 10 : -1;
  }
  return -1;
}

// A decimal number, digits[.digits], as value * 10^-places. False if it is none.
bool decimal(std::string_view text, unsigned __int128* value, unsigned* places) {
  *value = 0;
  *places = 0;
  bool point = false, digits = false;
  for (const char c : text) {
    if (c == '.' && !point && digits) {
      point = true;
      continue;
    }
    if (c < '0' || c > '9' || *places >= 9) return false;
    *value = *value * 10 + static_cast<unsigned>(c - '0');
    if (*value >> 64) return false;
    digits = true;
    *places += point;
  }
  return digits && text.back() != '.';
}

std::string three_digits(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

}  // namespace

uint64_t parse_size(std::string_view text, std::string_view what) {
  constexpr const char* kForm = "a size such as 4096, 64k, 1.5G or 2T";
  const size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  const int shift = unit_shift(text.substr(digits));
  unsigned __int128 value;
  unsigned places;
  if (shift < 0 || !decimal(text.substr(0, digits), &value, &places)) refuse(what, text, kForm);
  // Shifted in two steps, so that 2^64 * 2^60 fits; a fraction of a byte is no size.
  value <<= shift;
  for (; places > 0; --places) {
    if (value % 10 != 0 && shift == 0) refuse(what, text, kForm);
    value /= 10;
  }
  if (value >> 63) refuse(what, text, "less than 8 EiB");
  return static_cast<uint64_t>(value);
}

std::string format_size(uint64_t bytes) {
  static constexpr const char* kNames[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  // As qemu-img: the unit in which the number stays under 1000.
  int exponent = 0;
  std::frexp(static_cast<double>(bytes) / (1000.0 / 1024.0), &exponent);
  const unsigned unit = exponent > 0 ? static_cast<unsigned>(exponent - 1) / 10 : 0;
  return three_digits(static_cast<double>(bytes) / std::ldexp(1.0, static_cast<int>(unit) * 10)) +
         " " + kNames[unit];
}

std::chrono::milliseconds parse_duration(std::string_view text, std::string_view what) {
  constexpr const char* kForm = "a time such as 250ms, 10s, 5m or 2h";
  const size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  const auto unit = text.substr(digits);
  const unsigned factor = unit == "ms"                  ? 1
                          : unit == "s" || unit.empty() ? 1000
                          : unit == "m"                 ? 60 * 1000
                          : unit == "h"                 ? 3600 * 1000
                                                        : 0;
  unsigned __int128 value;
  unsigned places;
  if (factor == 0 || !decimal(text.substr(0, digits), &value, &places)) refuse(what, text, kForm);
  value *= factor;
  for (; places > 0; --places) value /= 10;
  if (value >> 53) refuse(what, text, kForm);
  return std::chrono::milliseconds(static_cast<int64_t>(value));
}

std::string format_duration(std::chrono::milliseconds duration) {
  const auto ms = static_cast<double>(duration.count());
  if (ms < 1000) return three_digits(ms) + " ms";
  if (ms < 60e3) return three_digits(ms / 1e3) + " s";
  if (ms < 3600e3) return three_digits(ms / 60e3) + " min";
  return three_digits(ms / 3600e3) + " h";
}

std::string format_rfc3339(std::chrono::system_clock::time_point time) {
  const auto since = time.time_since_epoch();
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(since).count();
  const std::time_t seconds = ms / 1000;
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char date[32], text[48];
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text, sizeof text, "%s.%03dZ", date, static_cast<int>(ms % 1000));
  return text;
}

}  // namespace cowd
