// SPDX-License-Identifier: GPL-2.0-or-later
// In the words of 'qemu-img info --output=json', so that scripts can read either.
#include <nlohmann/json.hpp>

#include "formats/qcow2/operations.hh"

namespace cowd::qcow2 {

Task<nlohmann::json> info(std::shared_ptr<Disk> top) {
  const Header header = co_await read_header(*top);
  nlohmann::json data{
      {"compat", header.version == 2 ? "0.10" : "1.1"},
      {"refcount-bits", header.refcount_bits()},
      {"compression-type", header.compression == Compression::zstd ? "zstd" : "zlib"}};
  if (header.version == 3) {
    data["lazy-refcounts"] = (header.compatible & kLazyRefcounts) != 0;
    data["corrupt"] = (header.incompatible & kCorrupt) != 0;
    data["extended-l2"] = header.extended();
  }
  if (header.has_data_file()) {
    data["data-file"] = header.data_file;
    data["data-file-raw"] = (header.autoclear & kRawExternal) != 0;
  }
  nlohmann::json json{{"format", "qcow2"},
                      {"virtual-size", header.size},
                      {"cluster-size", header.cluster()},
                      {"dirty-flag", (header.incompatible & kDirty) != 0},
                      {"snapshots", header.snapshots},
                      {"format-specific", {{"type", "qcow2"}, {"data", data}}}};
  if (!header.backing_name.empty()) {
    json["base"] = header.backing_name;
    json["backing-filename"] = header.backing_name;
    if (!header.backing_format.empty()) json["backing-filename-format"] = header.backing_format;
  }
  co_return json;
}

}  // namespace cowd::qcow2
