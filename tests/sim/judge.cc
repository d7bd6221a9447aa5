// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/sim/judge.hh"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

namespace cowd::sim {
namespace {

constexpr uint64_t kSectorBytes = 512;

// A map's entry but for where in the file it is, and what it says of its run.
struct Told {
  uint64_t start = 0;
  uint64_t length = 0;
  std::string what;
};

std::string what_of(int depth, bool present, bool zero, bool data, bool compressed) {
  return "depth " + std::to_string(depth) + (present ? " present" : "") + (zero ? " zero" : "") +
         (data ? " data" : "") + (compressed ? " compressed" : "");
}

// Runs that go on are one: each of the two cuts them where it likes.
void tell(std::vector<Told>& all, const Told& next) {
  if (next.length == 0) return;
  if (!all.empty() && all.back().what == next.what)
    all.back().length += next.length;
  else
    all.push_back(next);
}

std::string text_of(const std::vector<Told>& all) {
  std::string text;
  for (const Told& each : all)
    text += std::to_string(each.start) + " " + std::to_string(each.length) + " " + each.what + "\n";
  return text;
}

std::string our_map(Image& image, bool with_compressed) {
  std::vector<Told> all;
  for (const MapEntry& each : run(image.map({0, image.sectors()})))
    tell(all, {each.range.sector * kSectorBytes, each.range.len * kSectorBytes,
               what_of(each.depth, each.present, each.zero, each.data,
                       with_compressed && each.compressed)});
  return text_of(all);
}

nlohmann::json parsed(const std::string& path) {
  const Bytes bytes = read_file(path);
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  return nlohmann::json::parse(text, text + bytes.size());
}

std::string their_map(const nlohmann::json& map) {
  std::vector<Told> all;
  for (const auto& each : map)
    tell(all, {each.at("start"), each.at("length"),
               what_of(each.at("depth"), each.at("present"), each.at("zero"), each.at("data"),
                       each.value("compressed", false))});
  return text_of(all);
}

// qcow2 alone is told where the last cluster in use ends.
std::string what_is_behind(const Folder& folder) {
  const nlohmann::json check = parsed(folder / "check");
  const uint64_t size = std::filesystem::file_size(folder / "image");
  const uint64_t end = check.value("image-end-offset", size);
  if (size <= end) return "";
  return "the file has " + std::to_string(size) + " bytes, and all that is used ends at " +
         std::to_string(end) + "\n";
}

}  // namespace

std::string judged_by_qemu(const Folder& folder, const std::string& qemu_format, bool has_check,
                           const Bytes& disk, Image& ours) {
  write_file(folder / "judged", disk);
  const std::string image = " -f " + qemu_format + " image ";
  std::string command =
      "cd " + (folder / "") + " && qemu-img compare -q -F raw" + image + "judged && ";
  if (has_check)
    command += "{ qemu-img check --output=json" + image + ">check || ! cat check; } && ";
  command += "qemu-img map --output=json" + image + ">map";
  std::string said = shell(command);
  if (!said.empty()) return said;
  const nlohmann::json map = parsed(folder / "map");
  // Of what is compressed qemu-img tells from version 8.2 on.
  const bool with_compressed = !map.empty() && map[0].contains("compressed");
  const std::string one = our_map(ours, with_compressed), other = their_map(map);
  if (one != other) said = "cowctl map:\n" + one + "qemu-img map:\n" + other;
  if (has_check) said += what_is_behind(folder);
  return said;
}

}  // namespace cowd::sim
