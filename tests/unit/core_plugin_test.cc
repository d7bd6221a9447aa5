// SPDX-License-Identifier: GPL-2.0-or-later
// The plugin loader against plugins that are wrong in one way each.
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

#include "cowd/core/error.hh"
#include "cowd/core/plugin_loader.hh"

namespace {

using namespace cowd;

constexpr const char* kPlugins = "build/tests/unit/plugins";

std::string refusal(const std::string& name, int code) {
  PluginLoader loader({kPlugins});
  try {
    loader.load(name);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    return e.what();
  }
  return "it was loaded";
}

TEST(PluginLoader, LoadsAGoodOneOnce) {
  PluginLoader loader({"/nonexistent", kPlugins});
  const FormatDescriptor& format = loader.load("good");
  EXPECT_STREQ(format.description, "for a test");
  EXPECT_EQ(&loader.load("good"), &format);
}

TEST(PluginLoader, RefusesWithASentence) {
  EXPECT_NE(refusal("wrongabi", ENOEXEC).find("plugin ABI 2; this is ABI 1"), std::string::npos);
  EXPECT_NE(refusal("wrongsize", ENOEXEC).find("bytes where this cowd has"), std::string::npos);
  EXPECT_NE(refusal("nosymbol", ENOEXEC).find("does not export cowd_format"), std::string::npos);
  EXPECT_NE(refusal("wrongname", ENOEXEC).find("calls itself another"), std::string::npos);
  EXPECT_NE(refusal("noopen", ENOEXEC).find("can neither open"), std::string::npos);
  EXPECT_NE(refusal("unresolved", ENOEXEC).find("a_function_that_nobody_has"), std::string::npos);
}

TEST(PluginLoader, RefusesWhatIsNoSharedObject) {
  const auto dir = std::filesystem::temp_directory_path() / ("plugins." + std::to_string(getpid()));
  std::filesystem::create_directory(dir);
  std::ofstream(dir / "text.so") << "not an object\n";
  PluginLoader loader({dir});
  EXPECT_THROW(loader.load("text"), Error);
  std::filesystem::remove_all(dir);
}

TEST(PluginLoader, NamesWhatThereIs) {
  const std::string sentence = refusal("qcow9", ENOENT);
  EXPECT_NE(sentence.find("good, "), std::string::npos) << sentence;
  EXPECT_NE(refusal("../plugins/good", ENOENT).find("There is no format"), std::string::npos);
  EXPECT_NE(refusal("", ENOENT).find("There is no format"), std::string::npos);
}

TEST(PluginLoader, DirectoriesInOrder) {
  setenv("COWD_PLUGIN_DIR", "/one:/two", 1);
  const auto directories = PluginLoader::default_directories({"/first"});
  unsetenv("COWD_PLUGIN_DIR");
  ASSERT_EQ(directories.size(), 4u);
  EXPECT_EQ(directories[0], "/first");
  EXPECT_EQ(directories[1], "/one");
  EXPECT_EQ(directories[2], "/two");
  EXPECT_EQ(PluginLoader::default_directories().size(), 1u);
}

TEST(PluginLoader, CreateOptions) {
  PluginLoader loader({kPlugins});
  const auto options = create_options(loader.load("good"));
  ASSERT_EQ(options.size(), 2u);
  EXPECT_EQ(options[0].first, "granule");
  EXPECT_EQ(options[0].second, "the granule, e.g. 4k");
  EXPECT_EQ(options[1].second, "a=b");
}

}  // namespace
