// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/system/fstree.hh"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string_view>
#include <system_error>
#include <vector>

namespace {

constexpr size_t kChunk = 1 << 17;

[[noreturn]] void fail(const std::string& path) {
  throw std::system_error(errno, std::generic_category(), path);
}

// FNV-1a in words: it is to find differences, not to withstand an attack.
class Sum {
 public:
  void add(const void* data, size_t size) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    for (; size >= 8; bytes += 8, size -= 8) {
      uint64_t word;
      memcpy(&word, bytes, 8);
      step(word);
    }
    for (; size; bytes++, size--) step(*bytes);
  }
  uint64_t value() const { return value_; }

 private:
  void step(uint64_t word) {
    value_ = (value_ ^ word) * 0x100000001b3;
    value_ ^= value_ >> 29;
  }
  uint64_t value_ = 0xcbf29ce484222325;
};

uint64_t sum_of_file(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(path);
  static std::vector<char> buffer(kChunk);
  Sum sum;
  ssize_t did;
  while ((did = read(fd, buffer.data(), buffer.size())) > 0)
    sum.add(buffer.data(), static_cast<size_t>(did));
  const int error = errno;
  close(fd);
  errno = error;
  if (did < 0) fail(path);
  return sum.value();
}

// Names and values, in order of names; security.* is the host's affair.
uint64_t sum_of_xattrs(const std::string& path) {
  char list[4096];
  const ssize_t size = llistxattr(path.c_str(), list, sizeof list);
  if (size < 0) fail(path);
  std::vector<std::string> names;
  for (const char* name = list; name < list + size; name += strlen(name) + 1)
    if (std::string_view(name).starts_with("user.")) names.emplace_back(name);
  std::sort(names.begin(), names.end());
  Sum sum;
  for (const auto& name : names) {
    char value[4096];
    const ssize_t length = lgetxattr(path.c_str(), name.c_str(), value, sizeof value);
    if (length < 0) fail(path);
    sum.add(name.data(), name.size());
    sum.add(value, static_cast<size_t>(length));
  }
  return names.empty() ? 0 : sum.value();
}

std::string target_of(const std::string& path) {
  char target[4096];
  const ssize_t length = readlink(path.c_str(), target, sizeof target);
  if (length < 0) fail(path);
  return {target, static_cast<size_t>(length)};
}

std::vector<std::string> names_in(const std::string& path) {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(opendir(path.c_str()), closedir);
  if (!dir) fail(path);
  std::vector<std::string> names;
  while (const dirent* entry = readdir(dir.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != ".." && name != "lost+found") names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

void print(const std::string& root, const std::string& name) {
  const std::string path = root + name;
  struct stat st;
  if (lstat(path.c_str(), &st) < 0) fail(path);
  const bool is_dir = S_ISDIR(st.st_mode);
  printf("%s %o %u:%u links %lu size %ld mtime %ld x %016lx ", name.empty() ? "/" : name.c_str(),
         st.st_mode, st.st_uid, st.st_gid, static_cast<unsigned long>(st.st_nlink),
         is_dir ? 0L : static_cast<long>(st.st_size), static_cast<long>(st.st_mtime),
         S_ISLNK(st.st_mode) ? 0UL : sum_of_xattrs(path));
  if (S_ISREG(st.st_mode))
    printf("%016lx\n", sum_of_file(path));
  else
    printf("%s\n", S_ISLNK(st.st_mode) ? target_of(path).c_str() : "-");
  if (is_dir)
    for (const auto& child : names_in(path)) print(root, name + "/" + child);
}

}  // namespace

void print_tree(const std::string& root) { print(root, ""); }
