// SPDX-License-Identifier: GPL-2.0-or-later
// Backings on the network as far as they need none: options of named disks.
// tests/system/backing-nbd.sh has the rest.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "cowd/core/disk_options.hh"
#include "cowd/core/error.hh"
#include "cowd/core/spec.hh"

namespace cowd {
namespace {

namespace fs = std::filesystem;

int code_of(const std::function<void()>& call, std::string* sentence = nullptr) {
  try {
    call();
    return 0;
  } catch (const Error& error) {
    if (sentence) *sentence = error.what();
    return error.code();
  }
}

class BackingTest : public testing::Test {
 protected:
  BackingTest() {
    char name[] = "/tmp/backing-XXXXXX";
    dir_ = mkdtemp(name);
  }
  ~BackingTest() override { fs::remove_all(dir_); }
  void write(const fs::path& name, const std::string& text, mode_t mode = 0600) const {
    fs::create_directories((dir_ / name).parent_path());
    std::ofstream(dir_ / name) << text;
    chmod((dir_ / name).c_str(), mode);
  }
  std::string read(const fs::path& name) const {
    std::ifstream in(dir_ / name);
    std::ostringstream out;
    out << in.rdbuf();
    return out.str();
  }
  fs::path dir_;
};

const Component kTarget = parse_spec("raw:iscsi://san/iqn.2004-10.com.example%3Ad/3").top;
const Component kExport = parse_spec("raw:nbd://server/base").top;

TEST_F(BackingTest, OptionsAreThoseOfTheDiskThatNamesIt) {
  write("a.toml", "spec = \"raw:/dev/vg/a\"\non_backing_loss = \"error\"\n", 0644);
  write("b.toml", "not TOML", 0644);
  write("c.toml",
        "spec = \"dscow:/dev/vg/c:nbd://server:10809/base\"\non_backing_loss = \"error\"\n"
        "backing_loss_timeout = \"2500ms\"\n",
        0644);
  write("d.toml", "spec = \"raw:nbd://server/base2\"\non_backing_loss = \"wait\"\n", 0644);
  const auto options = disk_options(kExport, dir_);
  ASSERT_TRUE(options.loss);
  EXPECT_EQ(options.loss->seconds, 3U);
  const auto other = disk_options(parse_spec("raw:nbd://server/base2").top, dir_);
  ASSERT_TRUE(other.loss);
  EXPECT_FALSE(other.loss->seconds);
  EXPECT_FALSE(disk_options(kTarget, dir_).loss);
  EXPECT_FALSE(disk_options(kTarget, dir_ / "none").loss);
}

TEST_F(BackingTest, WrongOptionsAreNamed) {
  const auto refusal = [&](const std::string& more) {
    write("x.toml", "spec = \"raw:/dev/vg/x\"\n" + more);
    std::string sentence = "nothing was refused";
    DiskSpec spec;
    spec.named = "x";
    code_of([&] { resolve_named_spec(spec, dir_); }, &sentence);
    return sentence;
  };
  EXPECT_NE(refusal("size = 1\n").find("'size'"), std::string::npos);
  EXPECT_NE(refusal("on_backing_loss = \"cry\"\n").find("\"wait\" or \"error\""),
            std::string::npos);
  EXPECT_NE(refusal("backing_loss_timeout = \"3s\"\n").find("on_backing_loss"), std::string::npos);
  EXPECT_EQ(refusal("on_backing_loss = \"error\"\n"), "nothing was refused");
}

}  // namespace
}  // namespace cowd
