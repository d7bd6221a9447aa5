// SPDX-License-Identifier: GPL-2.0-or-later
// How results look on a terminal.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace cowctl {

// Columns as wide as their widest cell, two spaces between, nothing behind the last.
class Table {
 public:
  enum class Align { left, right };
  struct Column {
    std::string heading;
    Align align = Align::left;
  };
  explicit Table(std::vector<Column> columns);
  void add(std::vector<std::string> row);  // as many cells as there are columns
  void print(std::ostream& out) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// An object as "key: value" lines, objects within indented; a key that speaks of a
// size is printed as qemu-img prints sizes.
void print_object(std::ostream& out, const nlohmann::json& object, unsigned indent = 0);

// Indented by 4, as qemu-img prints it.
void print_json(std::ostream& out, const nlohmann::json& value);

// One value without quotes.
std::string plain(const nlohmann::json& value);

// A table's cell from `object`: "-" where it has nothing under that name.
std::string cell(const nlohmann::json& object, const char* key);
std::string size_cell(const nlohmann::json& object);  // of "size"

}  // namespace cowctl
