// SPDX-License-Identifier: GPL-2.0-or-later
// The plugins as cowd loads them: what they export, and that errors and coroutines
// get across the border.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/sim/run.hh"
#include "tests/sim/sim_disk.hh"

namespace cowd {
namespace {

using namespace cowd::sim;

const FormatDescriptor& load(const std::string& name) {
  void* plugin = dlopen(("build/plugins/" + name + ".so").c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!plugin) throw std::runtime_error(dlerror());
  return *static_cast<const FormatDescriptor*>(dlsym(plugin, "cowd_format"));
}

TEST(Plugin, DescribesItself) {
  for (const std::string name : {"dscow", "qcow", "raw", "vhd", "vmdk"}) {
    const FormatDescriptor& format = load(name);
    EXPECT_EQ(format.abi, kPluginAbi);
    EXPECT_EQ(format.size, sizeof(FormatDescriptor));
    EXPECT_EQ(format.name, name);
    EXPECT_TRUE(format.probe && format.create && format.open && format.info && format.check);
    EXPECT_EQ(format.wants_base, name == "dscow");
    EXPECT_FALSE(format.needs_base);
  }
}

TEST(Plugin, ExportsNothingElse) {
  void* plugin = dlopen("build/plugins/dscow.so", RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(plugin, nullptr);
  EXPECT_NE(dlsym(plugin, "cowd_format"), nullptr);
  EXPECT_EQ(dlsym(plugin, "_ZN4cowd5dscow6createENS_13CreateRequestE"), nullptr);
}

TEST(Plugin, ServesADisk) {
  const FormatDescriptor& format = load("dscow");
  auto top = std::make_shared<SimDisk>("cow", 10 << 20);
  EXPECT_FALSE(format.probe(top->peek(0, 65536)));
  CreateRequest create;
  create.top = top;
  create.size = 8 << 20;
  run(format.create(create));
  EXPECT_TRUE(format.probe(top->peek(0, 65536)));
  EXPECT_FALSE(format.probe({}));
  EXPECT_EQ(run(format.info(top))["virtual-size"], 8 << 20);
  OpenRequest open;
  open.top = top;
  open.host_id = "host";
  open.boot_id = "boot";
  top->delay(1, 3);
  const auto image = run(format.open(open));
  EXPECT_EQ(image->initial().size(), 1u);
  run(image->close());
}

TEST(Plugin, ThrowsErrorsThatTheDaemonCatches) {
  CreateRequest request;
  request.top = std::make_shared<SimDisk>("cow", 4096);
  request.size = 1 << 20;
  const auto [code, sentence] = failure_of(load("dscow").create(request));
  EXPECT_EQ(code, ENOSPC);
  EXPECT_NE(sentence.find("too small"), std::string::npos);
}

}  // namespace
}  // namespace cowd
