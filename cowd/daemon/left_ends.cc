// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/left_ends.hh"

#include <charconv>
#include <filesystem>
#include <fstream>
#include <optional>

namespace cowd {

namespace fs = std::filesystem;

namespace {

std::optional<unsigned> number_of(const std::string& word) {
  unsigned number = 0;
  const char* end = word.data() + word.size();
  const auto [stop, error] = std::from_chars(word.data(), end, number);
  if (error != std::errc() || stop != end) return std::nullopt;
  return number;
}

std::vector<fs::path> files_in(const std::string& run_dir) {
  std::vector<fs::path> files;
  std::error_code ignored;
  for (const auto& each : fs::directory_iterator(fs::path(run_dir) / "ends", ignored))
    files.push_back(each.path());
  return files;
}

}  // namespace

std::vector<XenDomain> left_ends(const std::string& run_dir) {
  std::vector<XenDomain> ends;
  for (const fs::path& path : files_in(run_dir)) {
    const auto id = number_of(path.filename());
    std::string reason;
    XenDomain domain;
    std::ifstream(path) >> domain.uuid >> reason;
    const auto code = number_of(reason);
    if (!id || !code) continue;
    domain.id = *id;
    domain.dying = true;
    domain.shut_down = true;
    domain.reason = *code;
    domain.has_run = true;
    ends.push_back(std::move(domain));
  }
  return ends;
}

void forget_left_ends(const std::string& run_dir, const std::set<unsigned>& but) {
  std::error_code ignored;
  for (const fs::path& path : files_in(run_dir)) {
    const auto id = number_of(path.filename());
    if (id && !but.contains(*id)) fs::remove(path, ignored);
  }
}

}  // namespace cowd
