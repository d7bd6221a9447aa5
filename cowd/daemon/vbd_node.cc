// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/vbd_node.hh"

#include <sys/sysmacros.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdio>

#include "cowd/core/error.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace {

constexpr std::string_view kBelow = "backend/vbd/";

bool is_number(std::string_view word) {
  return !word.empty() && word.size() <= 10 &&
         word.find_first_not_of("0123456789") == std::string_view::npos;
}

}  // namespace

std::string vbd_node(std::string_view path) {
  if (!path.starts_with(kBelow)) return {};
  const size_t domid_end = path.find('/', kBelow.size());
  if (domid_end == std::string_view::npos) return {};
  const size_t end = std::min(path.find('/', domid_end + 1), path.size());
  if (!is_number(path.substr(kBelow.size(), domid_end - kBelow.size())) ||
      !is_number(path.substr(domid_end + 1, end - domid_end - 1)))
    return {};
  return std::string(path.substr(0, end));
}

void check_vbd_node(const std::string& path) {
  if (path.empty() || vbd_node(path) != path)
    throw Error(EINVAL, text("\"", path, "\" is no path of a disk: backend/vbd/DOMID/DEVID."));
}

unsigned domid_of(const std::string& node) {
  unsigned id = 0;
  if (node.starts_with(kBelow))
    std::from_chars(node.data() + kBelow.size(), node.data() + node.size(), id);
  return id;
}

std::string vbd_device_name(const std::string& domain, const std::string& vdev) {
  std::string name;
  for (char c : domain + "-" + vdev)
    name +=
        std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.' || c == '_' ? c : '_';
  return "vm-" + name.substr(0, 80);
}

std::string xen_dev(const std::string& dev) {
  unsigned major = 0, minor = 0;
  char hex[32] = "";
  if (std::sscanf(dev.c_str(), "%u:%u", &major, &minor) == 2)
    std::snprintf(hex, sizeof hex, "%x:%x", major, minor);
  return hex;
}

std::optional<dev_t> dev_of(const std::string& xen) {
  unsigned major_number = 0, minor_number = 0;
  if (std::sscanf(xen.c_str(), "%x:%x", &major_number, &minor_number) != 2) return std::nullopt;
  return makedev(major_number, minor_number);
}

}  // namespace cowd
