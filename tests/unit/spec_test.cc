// SPDX-License-Identifier: GPL-2.0-or-later
// The vectors of docs/disk-specification.md, and what a table cannot hold.
#include "cowd/core/spec.hh"

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <unistd.h>

#include "cowd/core/error.hh"

namespace {

using namespace cowd;

struct Vector {
  std::string text;
  std::string reading;
};

// "| `text` | reading |" under the heading "## Vectors".
std::vector<Vector> vectors() {
  std::ifstream file("docs/disk-specification.md");
  std::vector<Vector> result;
  bool there = false;
  for (std::string line; std::getline(file, line);) {
    there |= line == "## Vectors";
    const auto end = line.find("` | ");
    if (!there || !line.starts_with("| `") || end == std::string::npos) continue;
    result.push_back({line.substr(3, end - 3), line.substr(end + 4, line.size() - end - 6)});
  }
  return result;
}

std::string describe(const Component& c) {
  const std::string host = c.host + " " + std::to_string(c.port) + " ";
  switch (c.kind) {
    case Component::Kind::nbd: return "nbd(" + host + c.export_name + ")";
    case Component::Kind::iscsi:
      return "iscsi(" + host + c.target + " " + std::to_string(c.lun) + ")";
    case Component::Kind::transient: return "transient(" + c.pool + ")";
    case Component::Kind::path: break;
  }
  return "path(" + c.path + ")";
}

std::string describe(const DiskSpec& spec) {
  if (!spec.named.empty()) return "named=" + spec.named;
  return "format=" + spec.format + " top=" + describe(spec.top) +
         (spec.base ? " base=" + describe(*spec.base) : "");
}

TEST(Spec, TableOfVectors) {
  const auto all = vectors();
  ASSERT_GT(all.size(), 80u) << "run from the top of the tree";
  for (const auto& [text, reading] : all) {
    SCOPED_TRACE(text);
    if (!reading.starts_with("refused: ")) {
      EXPECT_NO_THROW(EXPECT_EQ(describe(parse_spec(text)), reading));
      continue;
    }
    try {
      ADD_FAILURE() << "read as " << describe(parse_spec(text));
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), EINVAL);
      EXPECT_NE(std::string(e.what()).find(reading.substr(9)), std::string::npos) << e.what();
      EXPECT_EQ(std::string(e.what()).back(), '.') << e.what();
    }
  }
}

TEST(Spec, CanonicalSpellingReadsTheSame) {
  for (const auto& [text, reading] : vectors()) {
    if (reading.starts_with("refused: ")) continue;
    const DiskSpec spec = parse_spec(text);
    EXPECT_EQ(parse_spec(spec.text()), spec) << text;
    EXPECT_EQ(parse_spec(spec.text()).text(), spec.text()) << text;
  }
}

TEST(Spec, CanonicalSpelling) {
  EXPECT_EQ(parse_spec("dmu:dscow:/a%3ab:nbd://[::1]:10809/x%25").text(),
            "dscow:/a%3Ab:nbd://[::1]/x%25");
}

TEST(Spec, RefusesWhatATableCannotHold) {
  EXPECT_THROW(parse_spec("raw:/srv/a\nb"), Error);
  EXPECT_THROW(parse_spec(std::string("raw:/srv/a\0b", 12)), Error);
  EXPECT_THROW(parse_spec("raw:/srv/\xff"), Error);
  EXPECT_THROW(parse_spec("raw:/" + std::string(9000, 'a')), Error);
  EXPECT_THROW(parse_spec(std::string(33, 'a') + ":/x"), Error);
}

class NamedSpec : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = std::filesystem::temp_directory_path() / ("spec_test." + std::to_string(getpid()));
    std::filesystem::create_directory(dir_);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  void write(const char* name, const char* text) { std::ofstream(dir_ / name) << text; }
  DiskSpec resolve(const char* text) { return resolve_named_spec(parse_spec(text), dir_); }

  std::string refusal(const char* text) {
    try {
      return "read as " + resolve(text).text();
    } catch (const Error& e) {
      return e.what();
    }
  }

  std::filesystem::path dir_;
};

TEST_F(NamedSpec, ReadsItsFile) {
  write("web1.toml", "# the web server\nspec = \"dscow:/dev/vg/cow:/dev/vg/base\"\n");
  EXPECT_EQ(resolve("@web1").text(), "dscow:/dev/vg/cow:/dev/vg/base");
  EXPECT_EQ(resolve("raw:/dev/vg/lv").text(), "raw:/dev/vg/lv");
}

TEST_F(NamedSpec, RefusesWithASentence) {
  write("loop.toml", "spec = \"@loop\"\n");
  write("extra.toml", "spec = \"raw:/x\"\npassword = \"y\"\n");
  write("none.toml", "\n");
  write("number.toml", "spec = 3\n");
  write("broken.toml", "spec = \n");
  EXPECT_NE(refusal("@missing").find("missing.toml"), std::string::npos);
  EXPECT_NE(refusal("@loop").find("names another disk"), std::string::npos);
  EXPECT_NE(refusal("@extra").find("'password'"), std::string::npos);
  EXPECT_NE(refusal("@none").find("needs spec ="), std::string::npos);
  EXPECT_NE(refusal("@number").find("needs spec ="), std::string::npos);
  EXPECT_NE(refusal("@broken").find("is not TOML"), std::string::npos);
}

}  // namespace
