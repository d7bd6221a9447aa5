// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/space.hh"

#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>

#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace {

namespace fs = std::filesystem;

// Loops and tables cannot go in circles; a limit all the same.
constexpr unsigned kDepth = 16;

std::string dev_text(dev_t dev) { return text(major(dev), ":", minor(dev)); }

std::string first_line(const fs::path& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

void add(std::vector<SpaceId>& list, SpaceId space) {
  if (std::find(list.begin(), list.end(), space) == list.end()) list.push_back(std::move(space));
}

// "LVM-" and two uuids of 32 characters without their hyphens, the group's and the volume's.
std::optional<std::string> pool_uuid(const std::string& dm_uuid) {
  constexpr size_t kLength = 32, kPrefix = 4;
  if (!dm_uuid.starts_with("LVM-") ||
      dm_uuid.substr(std::min(dm_uuid.size(), kPrefix + 2 * kLength)) != "-tpool")
    return std::nullopt;
  std::string uuid = dm_uuid.substr(kPrefix + kLength, kLength);
  for (const size_t at : {6, 11, 16, 21, 26, 31}) uuid.insert(at, "-");
  return uuid;
}

void find_pools(const fs::path& device, const std::string& sysfs, unsigned depth,
                std::vector<SpaceId>& found) {
  if (depth == kDepth) return;
  if (auto uuid = pool_uuid(first_line(device / "dm/uuid")))
    return add(found, {SpaceId::Kind::thin_pool, *uuid});
  std::error_code ignored;
  // A partition has no slaves of its own.
  if (fs::exists(device / "partition", ignored))
    return find_pools(fs::canonical(device, ignored).parent_path(), sysfs, depth + 1, found);
  for (const auto& slave : fs::directory_iterator(device / "slaves", ignored))
    find_pools(slave.path(), sysfs, depth + 1, found);
}

void find_spaces(const std::string& path, unsigned depth, std::vector<StoreSpace>& found) {
  struct stat st;
  if (depth == kDepth || stat(path.c_str(), &st) < 0) return;
  dev_t device = st.st_rdev;
  if (S_ISREG(st.st_mode)) {
    found.push_back({{SpaceId::Kind::filesystem, dev_text(st.st_dev)}, path});
    device = st.st_dev;
  } else if (!S_ISBLK(st.st_mode)) {
    return;
  }
  for (SpaceId& pool : pools_beneath(device)) found.push_back({std::move(pool), {}});
  const std::string file = first_line("/sys/dev/block/" + dev_text(device) + "/loop/backing_file");
  if (!file.empty()) find_spaces(file, depth + 1, found);
}

// The highest directory above `path` that is in the same file system.
std::string mount_point(const std::string& path, dev_t device) {
  std::error_code ignored;
  fs::path at = fs::canonical(path, ignored).parent_path();
  for (; at.has_relative_path(); at = at.parent_path()) {
    struct stat st;
    if (stat(at.parent_path().c_str(), &st) < 0 || st.st_dev != device) break;
  }
  return at.string();
}

}  // namespace

std::vector<SpaceId> pools_beneath(dev_t device, const std::string& sysfs) {
  std::vector<SpaceId> found;
  find_pools(fs::path(sysfs) / "dev/block" / dev_text(device), sysfs, 0, found);
  return found;
}

std::vector<StoreSpace> spaces_beneath(const Component& top) {
  std::vector<StoreSpace> found;
  if (top.kind == Component::Kind::path) find_spaces(top.path, 0, found);
  return found;
}

std::optional<SpaceFigures> look_at_filesystem(const std::vector<std::string>& files) {
  SpaceFigures figures;
  std::string one;
  dev_t device = 0;
  for (const std::string& file : files) {
    struct stat st;
    if (stat(file.c_str(), &st) < 0 || !S_ISREG(st.st_mode)) continue;
    const auto size = static_cast<uint64_t>(st.st_size);
    const auto there = static_cast<uint64_t>(st.st_blocks) * 512;
    if (size > there) figures.growth += size - there;
    one = file;
    device = st.st_dev;
  }
  if (!figures.growth) return std::nullopt;
  struct statvfs st;
  if (statvfs(one.c_str(), &st) < 0)
    throw Error(errno, text("How full the file system of ", one,
                            " is cannot be found out: ", errno_text(errno), "."));
  // df's percentage: what is kept for root counts neither as used nor as free.
  figures.name = mount_point(one, device);
  figures.used = (st.f_blocks - st.f_bfree) * st.f_frsize;
  figures.size = figures.used + st.f_bavail * st.f_frsize;
  if (figures.size)
    figures.percent = 100.0 * static_cast<double>(figures.used) / static_cast<double>(figures.size);
  return figures;
}

}  // namespace cowd
