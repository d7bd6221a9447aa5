// SPDX-License-Identifier: GPL-2.0-or-later
// Backings on the network as far as they need none: options of named disks and open-iscsi's
// records. tests/system/backing-*.sh have the rest.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "cowd/core/backing.hh"
#include "cowd/core/disk_options.hh"
#include "cowd/core/error.hh"
#include "cowd/core/helper.hh"
#include "cowd/core/iscsi.hh"
#include "cowd/core/iscsi_record.hh"
#include "cowd/core/left_events.hh"
#include "cowd/core/spec.hh"
#include "cowd/core/toml.hh"

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

TEST_F(BackingTest, WhatNobodyHeardIsLeftForTheNextOne) {
  EXPECT_TRUE(take_left_events(dir_).empty());
  leave_event(dir_ / "none", {"e-00000001", "Nowhere."});
  leave_event(dir_, {"e-00000001", "Two\nlines."});
  write("more",
        read("left-events") + "e-00000002 By the script.\nno id\ne-00000003 \xff\ne-0000004\n");
  fs::rename(dir_ / "more", dir_ / "left-events");
  const auto events = take_left_events(dir_);
  ASSERT_EQ(events.size(), 2U);
  EXPECT_EQ(events[0].id, "e-00000001");
  EXPECT_EQ(events[0].sentence, "Two lines.");
  EXPECT_EQ(events[1].sentence, "By the script.");
  EXPECT_TRUE(fs::is_empty(dir_));
  for (int i = 0; i < 100; ++i) leave_event(dir_, {"e-00000005", std::string(10000, 'x')});
  EXPECT_LT(fs::file_size(dir_ / "left-events"), 70000U);
  EXPECT_EQ(fs::status(dir_ / "left-events").permissions(), fs::perms(0600));
}

TEST_F(BackingTest, HoldFilesOfTheDeadGo) {
  const HoldFile alive(dir_);
  write("helper-abcdef", "");
  write("lock", "");
  remove_left_hold_files(dir_);
  EXPECT_TRUE(fs::exists(alive.path()));
  EXPECT_FALSE(fs::exists(dir_ / "helper-abcdef"));
  EXPECT_TRUE(fs::exists(dir_ / "lock"));
  std::string path;
  {
    const HoldFile ended(dir_);
    path = ended.path();
  }
  EXPECT_FALSE(fs::exists(path));
}

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

TEST_F(BackingTest, PasswordsAreRootsAlone) {
  const std::string text =
      "spec = \"raw:iscsi://san/iqn.2004-10.com.example%3Ad/3\"\n"
      "[chap]\nuser = \"u\"\npassword = \"secret\"\n";
  for (const mode_t mode : {0644, 0640, 0604, 0620}) {
    write("a.toml", text, mode);
    std::string sentence;
    EXPECT_EQ(code_of([&] { disk_options(kTarget, dir_); }, &sentence), EPERM);
    EXPECT_EQ(sentence.find("secret"), std::string::npos);
    EXPECT_NE(sentence.find("chmod 600"), std::string::npos);
  }
  write("a.toml", text, 0600);
  EXPECT_EQ(disk_options(kTarget, dir_).password, "secret");
}

TEST_F(BackingTest, PasswordsAreInNoSentence) {
  DiskSpec spec;
  spec.named = "a";
  for (const char* wrong :
       {"password = secret", "password = \"secret", "password = \"secret\" x"}) {
    write("a.toml", "spec = \"raw:/dev/vg/x\"\n[chap]\nuser = \"u\"\n" + std::string(wrong) + "\n");
    std::string sentence;
    EXPECT_EQ(code_of([&] { resolve_named_spec(spec, dir_); }, &sentence), EINVAL);
    EXPECT_EQ(sentence.find("secret"), std::string::npos) << sentence;
    EXPECT_NE(sentence.find("line 4"), std::string::npos) << sentence;
  }
}

TEST_F(BackingTest, WhatTheLibraryDoesNotSurviveIsRefused) {
  const auto refusal = [](const std::string& text) {
    std::string sentence;
    EXPECT_EQ(code_of([&] { parse_toml(text, "a.toml"); }, &sentence), EINVAL)
        << text.substr(0, 20);
    return sentence;
  };
  EXPECT_NE(refusal("a = 1\n'\xb4' = 2\n").find("line 2. Its text has to be UTF-8"),
            std::string::npos);
  EXPECT_NE(refusal("a = " + std::string(30000, '[')).find("brackets"), std::string::npos);
  std::string deep = "a";
  for (int i = 0; i < 30000; ++i) deep += ".a";
  EXPECT_NE(refusal(deep + " = 1\n").find("dots"), std::string::npos);
  EXPECT_NE(refusal(std::string((1 << 20) + 1, '#')).find("1 MiB"), std::string::npos);
  // At the limits it is read, on the stack of a thread.
  deep = "a";
  for (int i = 0; i < 128; ++i) deep += ".a";
  const auto table = parse_toml(
      deep + " = 1\nb = " + std::string(512, '[') + std::string(512, ']') + "\n", "a.toml");
  EXPECT_TRUE(table.contains("b"));
}

TEST_F(BackingTest, AUnitIsOneStoreByWhateverPortal) {
  const auto top = [](const char* text) { return parse_spec(text).top; };
  const Component unit = top("raw:iscsi://san/iqn.2004-10.com.example%3Ad/3");
  EXPECT_TRUE(same_backing(unit, top("raw:iscsi://[::1]:3261/iqn.2004-10.COM.example%3Ad/3")));
  EXPECT_FALSE(same_backing(unit, top("raw:iscsi://san/iqn.2004-10.com.example%3Ad/4")));
  EXPECT_FALSE(same_backing(unit, top("raw:iscsi://san/iqn.2004-10.com.example%3Ae/3")));
  EXPECT_EQ(iscsi_identity(makedev(1, 0)), "");
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
  EXPECT_NE(refusal("[chap]\nuser = \"u\"\n").find("user and password"), std::string::npos);
  EXPECT_NE(refusal("[chap]\nuser = \"u\"\npassword = \"a\\nb\"\n").find("printable"),
            std::string::npos);
  EXPECT_NE(refusal("[chap]\nuser = \"u\"\nname = \"a\"\n").find("chap.name"), std::string::npos);
  EXPECT_NE(refusal("[tls]\nca = \"ca.pem\"\n").find("path from /"), std::string::npos);
  EXPECT_NE(refusal("[tls]\nkey = \"/k\"\n").find("certificate and key"), std::string::npos);
  EXPECT_NE(refusal("[tls]\npsk = \"/k\"\n").find("tls.psk"), std::string::npos);
  EXPECT_NE(refusal("[tls]\nca = \"/ca.pem\"\n").find("no nbd://"), std::string::npos);
  EXPECT_EQ(refusal("on_backing_loss = \"error\"\n"), "nothing was refused");
}

constexpr const char* kRecord =
    "# BEGIN RECORD 2.1.8\n"
    "node.name = iqn.2004-10.com.example:d\n"
    "node.startup = automatic\n"
    "iface.iscsi_ifacename = cowd\n"
    "node.session.auth.authmethod = None\n"
    "node.session.cmds_max = 128\n"
    "node.session.timeo.replacement_timeout = 120\n"
    "# END RECORD\n";

const IscsiRecordName kName{"iqn.d", "san", 3260, "cowd"};

TEST_F(BackingTest, RecordsAreFound) {
  EXPECT_TRUE(find_iscsi_records(dir_, kName).empty());
  write("iqn.d/san,3260,1/default", kRecord);
  write("iqn.d/san2,3260,1/cowd", kRecord);
  write("iqn.d/san,3261,1/cowd", kRecord);
  write("iqn.d/san,3260", kRecord);  // what iscsiadm makes of a target without a portal group
  EXPECT_TRUE(find_iscsi_records(dir_, kName).empty());
  const fs::path path = iscsi_record_path(dir_, kName, 1);
  EXPECT_EQ(path, dir_ / "iqn.d/san,3260,1/cowd");
  write("iqn.d/san,3260,1/cowd", kRecord);
  EXPECT_EQ(find_iscsi_records(dir_, kName), std::vector{path});
}

TEST_F(BackingTest, RecordsAreChanged) {
  DiskOptions options;
  options.user = "u";
  options.password = "se cret=#";
  const std::string text = changed_iscsi_record(kRecord, iscsi_settings(kName, 7, options));
  const auto has = [&](const std::string& line) {
    return text.find("\n" + line + "\n") != std::string::npos;
  };
  EXPECT_TRUE(has("node.name = iqn.d"));
  EXPECT_FALSE(has("node.name = iqn.2004-10.com.example:d"));
  EXPECT_TRUE(has("node.conn[0].address = san"));
  EXPECT_TRUE(has("node.session.cmds_max = 128"));
  EXPECT_TRUE(has("node.startup = manual"));
  EXPECT_FALSE(has("node.startup = automatic"));
  EXPECT_TRUE(has("node.session.auth.authmethod = CHAP"));
  EXPECT_FALSE(has("node.session.auth.authmethod = None"));
  EXPECT_TRUE(has("node.session.auth.username = u"));
  EXPECT_TRUE(has("node.session.auth.password = se cret=#"));
  EXPECT_TRUE(has("node.session.timeo.replacement_timeout = 7"));
  EXPECT_TRUE(text.ends_with("\n# END RECORD\n"));
  const auto plain = iscsi_settings(kName, std::nullopt, {});
  EXPECT_EQ(plain.at("node.session.timeo.replacement_timeout"), "-1");
  EXPECT_EQ(plain.at("node.session.auth.authmethod"), "None");
}

TEST_F(BackingTest, RecordsAreRootsAloneAndGoWithTheirFolders) {
  const fs::path nodes = dir_ / "nodes", path = iscsi_record_path(nodes, kName, 1);
  const IscsiRecordName other{"iqn.d", "san", 3260, "default"};
  write_iscsi_record(nodes, path, kRecord);
  EXPECT_EQ(read("nodes/iqn.d/san,3260,1/cowd"), kRecord);
  struct stat info {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600U);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir_), fs::directory_iterator{}), 1);
  write_iscsi_record(nodes, iscsi_record_path(nodes, other, 1), kRecord);
  delete_iscsi_record(path);
  EXPECT_FALSE(fs::exists(path));
  EXPECT_TRUE(fs::exists(iscsi_record_path(nodes, other, 1)));
  delete_iscsi_record(iscsi_record_path(nodes, other, 1));
  EXPECT_FALSE(fs::exists(nodes / "iqn.d"));
  EXPECT_TRUE(fs::exists(nodes));
}

}  // namespace
}  // namespace cowd
