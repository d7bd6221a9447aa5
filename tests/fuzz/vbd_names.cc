// SPDX-License-Identifier: GPL-2.0-or-later
// Paths and names that come from XenStore, which domains and toolstacks write.
#include <algorithm>
#include <cstdint>

#include "cowd/core/error.hh"
#include "cowd/daemon/vbd_node.hh"
#include "tests/fuzz/fail.hh"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using namespace cowd;

void judge_node(const std::string& path) {
  const std::string node = vbd_node(path);
  if (node.empty()) return;
  fuzz::require(path.compare(0, node.size(), node) == 0, node + " is not above " + path);
  fuzz::require(vbd_node(node) == node, node + " is another node than itself");
  check_vbd_node(node);
  domid_of(node);
}

// As dm takes them, and a file in /run/cowd.
void judge_name(const std::string& name) {
  fuzz::require(!name.empty() && name.size() < 128, "no length for a name: " + name);
  fuzz::require(name.front() != '.', name + " is a hidden file");
  fuzz::require(std::ranges::none_of(name, [](char c) { return c == '/' || c <= ' ' || c == 127; }),
                name + " has what a name must not have");
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  judge_node(text);
  judge_node("backend/vbd/" + text);
  try {
    check_vbd_node(text);
    fuzz::require(vbd_node(text) == text, text + " passes for a node");
  } catch (const Error&) {
  }
  if (const auto dev = dev_of(text)) fuzz::require(!text.empty(), "a device without a number");
  const size_t half = size / 2;
  judge_name(vbd_device_name(text.substr(0, half), text.substr(half)));
  return 0;
}
