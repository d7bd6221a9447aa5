// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/cowctl/output.hh"

#include <algorithm>
#include <cstddef>
#include <ostream>

#include <nlohmann/json.hpp>

#include "cowd/core/units.hh"

namespace cowctl {

using nlohmann::json;

namespace {

// Characters of UTF-8, which is near enough to columns for paths and names.
size_t width(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

bool speaks_of_size(const std::string& key) {
  return key == "size" || key.ends_with("-size") || key.ends_with("_bytes") ||
         key.find("size-") != std::string::npos || key == "granule";
}

std::string words(std::string key) {
  std::replace(key.begin(), key.end(), '-', ' ');
  std::replace(key.begin(), key.end(), '_', ' ');
  return key;
}

std::string value_of(const std::string& key, const json& value) {
  if (!speaks_of_size(key) || !value.is_number_unsigned()) return plain(value);
  const auto bytes = value.get<uint64_t>();
  return cowd::format_size(bytes) + " (" + std::to_string(bytes) + " bytes)";
}

}  // namespace

Table::Table(std::vector<Column> columns) : columns_(std::move(columns)) {}

void Table::add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }

void Table::print(std::ostream& out) const {
  std::vector<std::string> headings;
  std::vector<size_t> widths;
  for (const Column& column : columns_) {
    headings.push_back(column.heading);
    widths.push_back(width(column.heading));
  }
  for (const auto& row : rows_)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width(row[i]));

  const auto print_row = [&](const std::vector<std::string>& row) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - width(row[i]), ' ');
      line += columns_[i].align == Align::right ? padding + row[i] : row[i] + padding;
      line += "  ";
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out << line << '\n';
  };
  print_row(headings);
  for (const auto& row : rows_) print_row(row);
}

void print_object(std::ostream& out, const json& object, unsigned indent) {
  const std::string margin(indent, ' ');
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) {
      out << margin << words(key) << ":\n";
      print_object(out, value, indent + 4);
    } else if (value.is_array() && !value.empty() && value.front().is_object()) {
      for (const auto& each : value) {
        out << margin << words(key) << ":\n";
        print_object(out, each, indent + 4);
      }
    } else {
      out << margin << words(key) << ": " << value_of(key, value) << '\n';
    }
  }
}

void print_json(std::ostream& out, const json& value) {
  out << value.dump(4, ' ', false, json::error_handler_t::replace) << '\n';
}

std::string cell(const json& object, const char* key) {
  const auto at = object.find(key);
  if (at == object.end()) return "-";
  const std::string text = plain(*at);
  return text.empty() ? "-" : text;
}

std::string size_cell(const json& object) {
  const auto at = object.find("size");
  const bool number = at != object.end() && at->is_number_unsigned();
  return number ? cowd::format_size(at->get<uint64_t>()) : "-";
}

std::string plain(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_null()) return "-";
  if (value.is_array()) {
    std::string text;
    for (const auto& each : value) text += (text.empty() ? "" : ", ") + plain(each);
    return text.empty() ? "-" : text;
  }
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace cowctl
