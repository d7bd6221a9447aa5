// SPDX-License-Identifier: GPL-2.0-or-later
// cowctl map SPEC|DEVICE [--start-offset OFFSET] [--max-length LENGTH]
//
// Asked for in windows, for an answer of cowd is one line of at most 1 MiB and a
// large disk's map has no such limit. Entries that continue each other over the edge
// of a window are merged again.
#include <utility>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <iostream>

#include <nlohmann/json.hpp>

#include "cowd/core/host.hh"
#include "cowd/core/json.hh"
#include "cowd/core/run.hh"
#include "cowd/core/units.hh"
#include "cowd/cowctl/commands.hh"
#include "cowd/cowctl/output.hh"
#include "cowd/cowctl/progress.hh"

namespace cowctl {

namespace {

constexpr uint64_t kSector = 512;
constexpr uint64_t kFirstWindow = 1ull << 40;
constexpr uint64_t kOfflineWindow = 1ull << 36;
constexpr uint64_t kLeastWindow = 1ull << 20;

// Prints entries as they come, the last one held back until it cannot grow.
class MapPrinter {
 public:
  explicit MapPrinter(bool as_json) : json_(as_json) {}

  void add(const json& entry) {
    if (!held_.is_null() && continues(held_, entry)) {
      held_["length"] = held_["length"].get<uint64_t>() + entry["length"].get<uint64_t>();
      return;
    }
    print();
    held_ = entry;
  }

  void end() {
    print();
    if (!json_) head();
    if (json_) std::printf(any_ ? "]\n" : "[]\n");
  }

 private:
  static bool continues(const json& a, const json& b) {
    for (const char* key : {"depth", "present", "zero", "data", "compressed"})
      if (a[key] != b[key]) return false;
    const auto length = a["length"].get<uint64_t>();
    if (a.contains("offset") != b.contains("offset") || a["compressed"] == true) return false;
    if (a.contains("offset") && a["offset"].get<uint64_t>() + length != b["offset"]) return false;
    return a["start"].get<uint64_t>() + length == b["start"] &&
           a.value("filename", "") == b.value("filename", "");
  }

  void print() {
    if (held_.is_null()) return;
    if (json_)
      print_as_json();
    else
      print_as_line();
    any_ = true;
    held_ = nullptr;
  }

  // Keys in qemu-img's order.
  void print_as_json() {
    std::string line = any_ ? ",\n{ " : "[{ ";
    bool first = true;
    for (const char* key : {"start", "length", "depth", "present", "zero", "data", "compressed",
                            "offset", "filename"}) {
      if (!held_.contains(key)) continue;
      line += std::string(first ? "" : ", ") + "\"" + key +
              "\": " + held_[key].dump(-1, ' ', false, json::error_handler_t::replace);
      first = false;
    }
    std::printf("%s}", line.c_str());
  }

  // Once, and not before the first answer is there: an error prints nothing else.
  void head() {
    if (!headed_) std::printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    headed_ = true;
  }

  void print_as_line() {
    head();
    if (held_["data"] != true || held_["zero"] == true) return;
    const auto hex = [&](const char* key) {
      char text[32] = "-";
      if (held_.contains(key))
        std::snprintf(text, sizeof text, "0x%" PRIx64, held_[key].get<uint64_t>());
      return std::string(text);
    };
    std::printf("%-16s%-16s%-16s%s\n", hex("start").c_str(), hex("length").c_str(),
                hex("offset").c_str(), held_.value("filename", "-").c_str());
  }

  const bool json_;
  bool headed_ = false;
  bool any_ = false;
  json held_;
};

struct Window {
  uint64_t begin = 0;
  uint64_t end = 0;
};

Window wanted(const Context& context, uint64_t size) {
  const Options& o = context.options;
  const uint64_t begin =
      o.start_offset.empty() ? 0 : cowd::parse_size(o.start_offset, "--start-offset");
  const uint64_t length =
      o.max_length.empty() ? size : cowd::parse_size(o.max_length, "--max-length");
  if (begin % kSector != 0 || (!o.max_length.empty() && length % kSector != 0))
    throw Error(EINVAL, "--start-offset and --max-length must be multiples of 512 bytes.");
  if (begin > size)
    throw Error(EINVAL, "--start-offset is behind the end of the disk, which has " +
                            std::to_string(size) + " bytes.");
  return {begin, begin + std::min(length, size - begin)};
}

// Halves the window as long as an answer does not fit a line.
void map_served(Context& context, uint64_t size) {
  const Window all = wanted(context, size);
  MapPrinter printer(context.options.json);
  uint64_t step = kFirstWindow;
  for (uint64_t at = all.begin; at < all.end;) {
    const uint64_t length = std::min(step, all.end - at);
    json answer;
    try {
      answer = ask(
          context,
          {{"cmd", "map"}, {"device", context.options.target}, {"offset", at}, {"length", length}},
          "mapping " + context.options.target);
    } catch (const Error& e) {
      if (e.code() != EMSGSIZE || step <= kLeastWindow) throw;
      step /= 2;
      continue;
    }
    for (const json& entry : answer.at("map")) printer.add(entry);
    at += length;
  }
  printer.end();
}

Task<> map_image(std::unique_ptr<cowd::Image> image, Window all, MapPrinter& printer,
                 ProgressLine& line) {
  for (uint64_t at = all.begin; at < all.end;) {
    const uint64_t length = std::min(kOfflineWindow, all.end - at);
    const auto entries = co_await image->map({at / kSector, length / kSector});
    for (const json& entry : cowd::map_to_json(entries)) printer.add(entry);
    at += length;
    line.update(at - all.begin, all.end - all.begin);
  }
}

void map_offline(Context& context) {
  OfflineDisk disk = find_disk(context);
  open_disk(context, &disk, cowd::BackingUse::look);
  if (cowd::backing_in_use(disk.spec.top))
    context.warn(disk.spec.top.text() +
                 " is in use and cowd could not be asked: what is shown may be out of date.");
  cowd::OpenRequest request;
  request.top = disk.top.disk;
  request.base = disk.base.disk;
  request.read_only = true;
  request.references = references_for(context, disk);
  request.host_id = cowd::host_id();
  request.boot_id = cowd::boot_id();
  ProgressLine line(context, "mapping " + disk.spec.top.text());
  auto image = cowd::run_to_end(context.io, disk.format->open(std::move(request)));
  const Window all = wanted(context, image->sectors() * kSector);
  MapPrinter printer(context.options.json);
  cowd::run_to_end(context.io, map_image(std::move(image), all, printer, line));
  printer.end();
}

}  // namespace

int run_map(Context& context) {
  const json request = {{"cmd", "info"}, {"device", context.options.target}};
  if (const auto served = ask_if_attached(context, request, "asking cowd"))
    map_served(context, served->value("size", uint64_t{0}));
  else
    map_offline(context);
  return 0;
}

}  // namespace cowctl
