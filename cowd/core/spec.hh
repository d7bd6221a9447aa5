// SPDX-License-Identifier: GPL-2.0-or-later
// The disk specification, [dmu:]FORMAT:TOP[:BASE] or @NAME. docs/disk-specification.md
// is its document, and its table of vectors is what the unit test reads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace cowd {

// What TOP or BASE names, decoded.
struct Component {
  enum class Kind {
    path,       // a block device or a file: path
    nbd,        // host, port, export_name
    iscsi,      // host, port, target, lun
    transient,  // pool: a volume group's name or a directory's absolute path
  };
  Kind kind = Kind::path;
  std::string path;
  std::string host;  // without the brackets of [v6]
  uint16_t port = 0;
  std::string export_name;
  std::string target;
  uint16_t lun = 0;
  std::string pool;

  // The canonical spelling: parses to the same component.
  std::string text() const;
  bool operator==(const Component&) const = default;
};

// Either `named` is set and nothing else, or format and top are.
struct DiskSpec {
  std::string named;  // NAME of @NAME
  std::string format;
  Component top;
  std::optional<Component> base;

  // The canonical spelling, without "dmu:".
  std::string text() const;
  bool operator==(const DiskSpec&) const = default;
};

extern const char* const kDisksDir;  // where make install puts configuration

// Reads nothing but its argument. Throws Error(EINVAL).
DiskSpec parse_spec(std::string_view text);

// The specification in DIR/NAME.toml for a named one, else a copy of it. Throws
// Error: ENOENT without the file, EINVAL for what it should not hold.
DiskSpec resolve_named_spec(const DiskSpec& spec, const std::filesystem::path& dir = kDisksDir);

}  // namespace cowd
