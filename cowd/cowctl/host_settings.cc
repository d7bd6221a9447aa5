// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/cowctl/host_settings.hh"

#include <regex>
#include <sstream>

#include "cowd/core/toml.hh"

namespace cowctl {

namespace {

constexpr const char* kOurs = "r|^/dev/dmu/|";

std::string trimmed(const std::string& text) {
  const size_t from = text.find_first_not_of(" \t\r");
  if (from == std::string::npos) return "";
  return text.substr(from, text.find_last_not_of(" \t\r") - from + 1);
}

// The value of `line` if it is KEY=VALUE.
std::optional<std::string> value_of(const std::string& line, const std::string& key) {
  const std::string text = trimmed(line);
  const size_t equals = text.find('=');
  if (equals == std::string::npos || trimmed(text.substr(0, equals)) != key) return std::nullopt;
  return trimmed(text.substr(equals + 1));
}

struct Pattern {
  bool accept = false;
  std::string regex;
};

// Any character can enclose the expression, brackets in pairs.
std::optional<Pattern> parse_pattern(const std::string& text) {
  if (text.size() < 3 || (text[0] != 'a' && text[0] != 'r')) return std::nullopt;
  const size_t end = text.size() - 1;
  const std::string opening = "([{<", closing = ")]}>";
  const size_t bracket = opening.find(text[1]);
  if (text[end] != (bracket == std::string::npos ? text[1] : closing[bracket])) return std::nullopt;
  return Pattern{text[0] == 'a', text.substr(2, end - 2)};
}

bool matches(const Pattern& pattern, const std::string& name) {
  try {
    return std::regex_search(name, std::regex(pattern.regex, std::regex::extended));
  } catch (const std::regex_error&) {
    return false;
  }
}

bool accepts_all(const Pattern& pattern) {
  return pattern.accept && (pattern.regex == ".*" || pattern.regex.empty());
}

std::vector<Pattern> parse_filter(const std::vector<std::string>& filter) {
  std::vector<Pattern> patterns;
  for (const std::string& text : filter)
    if (auto pattern = parse_pattern(text)) patterns.push_back(*pattern);
  return patterns;
}

}  // namespace

std::optional<std::string> setting(const std::string& text, const std::string& key) {
  std::optional<std::string> found;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    auto value = value_of(line, key);
    if (!value) continue;
    const bool quoted = value->size() >= 2 && (value->front() == '"' || value->front() == '\'') &&
                        value->back() == value->front();
    found = quoted ? value->substr(1, value->size() - 2) : *value;
  }
  return found;
}

std::vector<std::string> lvm_strings(const std::string& text, const std::string& key) {
  std::vector<std::string> strings;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const auto value = value_of(line, key);
    if (!value) continue;
    strings.clear();
    bool inside = false, escaped = false;
    for (char c : *value) {
      if (inside && !escaped && c == '\\') {
        escaped = true;
      } else if (c == '"' && !escaped) {
        inside = !inside;
        if (inside) strings.emplace_back();
      } else if (inside) {
        strings.back() += c;
        escaped = false;
      }
    }
  }
  return strings;
}

bool lvm_reads(const std::vector<std::string>& filter, const std::vector<std::string>& names) {
  const std::vector<Pattern> patterns = parse_filter(filter);
  bool rejected = false;
  for (const std::string& name : names)
    for (const Pattern& pattern : patterns) {
      if (!matches(pattern, name)) continue;
      if (pattern.accept) return true;
      rejected = true;
      break;
    }
  return !rejected;
}

std::optional<std::string> lvm_filter_line(const std::vector<std::string>& filter,
                                           const std::vector<std::string>& names) {
  std::vector<std::string> wanted = {kOurs};
  for (const std::string& text : filter) {
    const auto pattern = parse_pattern(text);
    // What no pattern matches is accepted anyhow; said last, it would accept ours.
    if (text != kOurs && !(pattern && accepts_all(*pattern))) wanted.push_back(text);
  }
  if (lvm_reads(wanted, names)) return std::nullopt;
  std::string line = "global_filter = [";
  for (const std::string& text : wanted) {
    line += line.back() == '[' ? " \"" : ", \"";
    for (char c : text) {
      if (c == '"' || c == '\\') line += '\\';
      line += c;
    }
    line += '"';
  }
  return line + " ]";
}

std::optional<std::string> backing_loss_timeout(const std::string& text, const std::string& file) {
  const auto root = cowd::parse_toml(text, file);
  const auto said = [&](const char* key, const std::string& otherwise) {
    return root.contains("devices") && root.at("devices").is_table()
               ? toml::find_or(root.at("devices"), key, otherwise)
               : otherwise;
  };
  if (said("on_backing_loss", "wait") == "wait") return std::nullopt;
  return said("backing_loss_timeout", "60s");
}

}  // namespace cowctl
