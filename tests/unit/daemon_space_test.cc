// SPDX-License-Identifier: GPL-2.0-or-later
// What is known of file systems and pools that fill, and the program that adds room.
// tests/system/no-space.sh has real ones.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>

#include "cowd/core/error.hh"
#include "cowd/daemon/lvm.hh"
#include "cowd/daemon/space.hh"
#include "cowd/daemon/space_hook.hh"
#include "cowd/daemon/space_state.hh"

namespace cowd {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Change = SpaceState::Change;
using Strings = std::vector<std::string>;

int code_of(const std::function<void()>& call, std::string* sentence = nullptr) {
  try {
    call();
    return 0;
  } catch (const Error& error) {
    if (sentence) *sentence = error.what();
    return error.code();
  }
}

SpaceFigures full_to(double percent) {
  SpaceFigures figures;
  figures.name = "vg/pool";
  figures.size = 1000;
  figures.used = static_cast<uint64_t>(percent * 10);
  figures.percent = percent;
  return figures;
}

// --- how full, and when the hook is due ---

TEST(SpaceState, TellsOfTheWayUpAndOfTheWayBackOnce) {
  Config::Space settings;
  SpaceState state(settings);
  EXPECT_EQ(state.judge(full_to(79.9)), Change::none);
  EXPECT_EQ(state.judge(full_to(80)), Change::low);
  EXPECT_EQ(state.judge(full_to(99)), Change::none);
  EXPECT_EQ(state.judge(full_to(79)), Change::none);
  EXPECT_EQ(state.judge(full_to(75)), Change::none);
  EXPECT_EQ(state.judge(full_to(81)), Change::none);
  EXPECT_EQ(state.judge(full_to(74.9)), Change::ok);
  EXPECT_EQ(state.judge(full_to(79)), Change::none);
  EXPECT_EQ(state.judge(full_to(80.5)), Change::low);
}

TEST(SpaceState, OneThatIsLowWhenItIsFirstSeenIsToldOf) {
  Config::Space settings;
  SpaceState state(settings);
  EXPECT_EQ(state.judge(full_to(100)), Change::low);
}

TEST(SpaceState, MetadataCountsAsWell) {
  Config::Space settings;
  SpaceState state(settings);
  SpaceFigures figures = full_to(10);
  figures.metadata_percent = 81;
  EXPECT_EQ(state.judge(figures), Change::low);
  figures.metadata_percent = 20;
  EXPECT_EQ(state.judge(figures), Change::ok);
}

TEST(SpaceState, TheHookRunsWhileItIsLow) {
  Config::Space settings;
  settings.hook = "/hook";
  settings.hook_interval = 60s;
  SpaceState state(settings);
  auto now = SpaceState::Clock::now();
  state.judge(full_to(50));
  EXPECT_FALSE(state.begin_hook(now));
  state.judge(full_to(90));
  EXPECT_TRUE(state.begin_hook(now));
  EXPECT_FALSE(state.begin_hook(now + 120s)) << "it still runs";
  state.end_hook();
  EXPECT_FALSE(state.begin_hook(now + 59s));
  EXPECT_TRUE(state.begin_hook(now + 60s));
  state.end_hook();
  state.judge(full_to(50));
  EXPECT_FALSE(state.begin_hook(now + 600s));
}

TEST(SpaceState, WithoutAHookNoneRuns) {
  Config::Space settings;
  SpaceState state(settings);
  state.judge(full_to(90));
  EXPECT_FALSE(state.begin_hook(SpaceState::Clock::now()));
}

TEST(SpaceState, Words) {
  SpaceFigures figures = full_to(83.19);
  figures.size = 2 << 20;
  figures.used = 1 << 20;
  EXPECT_EQ(how_full(SpaceId::Kind::filesystem, figures),
            "The file system vg/pool is 83.1 % full (1 MiB of 2 MiB)");
  figures.metadata_percent = 4;
  EXPECT_EQ(how_full(SpaceId::Kind::thin_pool, figures),
            "The thin pool vg/pool is 83.1 % full (1 MiB of 2 MiB, its metadata 4.0 %)");
  EXPECT_EQ(name_some({"a", "b"}), "a, b");
  EXPECT_EQ(name_some(Strings(10, "x")), "x, x, x, x, x, x, x, x and 2 more");
}

// --- where the room comes from ---

class SpaceFiles : public testing::Test {
 protected:
  SpaceFiles() {
    char name[] = "/tmp/space-XXXXXX";
    directory_ = mkdtemp(name);
  }
  ~SpaceFiles() override { fs::remove_all(directory_); }

  std::string file(const std::string& name, const std::string& content, int mode = 0644) {
    const fs::path path = directory_ / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path) << content;
    chmod(path.c_str(), static_cast<mode_t>(mode));
    return path.string();
  }
  // A device of a sysfs: dev/block/MAJOR:MINOR -> the directory of that name.
  void device(const std::string& name, unsigned minor, const std::string& uuid,
              const Strings& slaves) {
    if (!uuid.empty()) file("sys/devices/" + name + "/dm/uuid", uuid + "\n");
    fs::create_directories(directory_ / "sys/devices" / name / "slaves");
    fs::create_directories(directory_ / "sys/dev/block");
    fs::create_directory_symlink("../../devices/" + name,
                                 directory_ / "sys/dev/block" / ("253:" + std::to_string(minor)));
    for (const std::string& slave : slaves)
      fs::create_directory_symlink("../../" + slave,
                                   directory_ / "sys/devices" / name / "slaves" / slave);
  }
  std::vector<SpaceId> pools(unsigned minor) {
    return pools_beneath(makedev(253, minor), (directory_ / "sys").string());
  }

  fs::path directory_;
};

const std::string kGroup = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const std::string kPool = "bbbbbbccccddddeeeeffffgggghhhhhh";

TEST_F(SpaceFiles, APoolIsFoundBeneathItsVolumes) {
  device("vda", 0, "", {});
  device("dm-1", 1, "LVM-" + kGroup + kPool + "-tdata", {"vda"});
  device("dm-2", 2, "LVM-" + kGroup + kPool + "-tpool", {"dm-1"});
  device("dm-3", 3, "LVM-" + kGroup + std::string(32, 'x'), {"dm-2"});  // thin
  device("dm-4", 4, "LVM-" + kGroup + std::string(32, 'y'),
         {"dm-2", "vda"});  // of an external origin
  device("dm-5", 5, "CRYPT-LUKS", {"dm-3"});
  device("dm-6", 6, "LVM-" + kGroup + std::string(32, 'z'), {"vda"});  // plain
  const std::vector<SpaceId> pool{
      {SpaceId::Kind::thin_pool, "bbbbbb-cccc-dddd-eeee-ffff-gggg-hhhhhh"}};
  EXPECT_EQ(pools(3), pool);
  EXPECT_EQ(pools(4), pool);
  EXPECT_EQ(pools(5), pool);
  EXPECT_TRUE(pools(6).empty());
  EXPECT_TRUE(pools(0).empty());
  EXPECT_TRUE(pools(99).empty());
}

TEST_F(SpaceFiles, APartitionLiesOnItsDisk) {
  device("dm-2", 2, "LVM-" + kGroup + kPool + "-tpool", {});
  device("vdb", 7, "", {"dm-2"});
  file("sys/devices/vdb/vdb1/partition", "1\n");
  fs::create_directory_symlink("../../devices/vdb/vdb1", directory_ / "sys/dev/block/253:8");
  EXPECT_EQ(pools(8).size(), 1U);
}

TEST_F(SpaceFiles, AFileTakesItsRoomFromItsFileSystem) {
  Component top;
  top.path = file("cow", "x");
  auto found = spaces_beneath(top);
  ASSERT_GE(found.size(), 1U);
  EXPECT_EQ(found[0].space.kind, SpaceId::Kind::filesystem);
  EXPECT_EQ(found[0].file, top.path);
  top.path += "-none";
  EXPECT_TRUE(spaces_beneath(top).empty());
  top.kind = Component::Kind::nbd;
  EXPECT_TRUE(spaces_beneath(top).empty());
}

TEST_F(SpaceFiles, AFileWithoutHolesNeedsNoRoom) {
  const std::string whole = file("whole", std::string(8192, 'x'));
  const int fd = open(whole.c_str(), O_RDONLY | O_CLOEXEC);
  fsync(fd);  // it has its blocks from then on
  close(fd);
  EXPECT_FALSE(look_at_filesystem({whole}));
  const std::string sparse = file("sparse", "");
  ASSERT_EQ(truncate(sparse.c_str(), 1 << 30), 0);
  auto figures = look_at_filesystem({whole, sparse, sparse + "-none"});
  ASSERT_TRUE(figures);
  EXPECT_GT(figures->growth, 1U << 29);
  EXPECT_LE(figures->growth, 1U << 30);
  EXPECT_GT(figures->size, 0U);
  EXPECT_LE(figures->used, figures->size);
  EXPECT_TRUE(directory_.string().starts_with(figures->name == "/" ? "" : figures->name));
  EXPECT_FALSE(look_at_filesystem({sparse + "-none"}));
}

TEST(Lvm, PoolsAreRead) {
  const auto pools = lvm::parse_pools(
      R"({"report":[{"lv":[{"lv_uuid":"u1","lv_name":"pool","vg_name":"vg","lv_size":"1073741824",)"
      R"("data_percent":"81.25","metadata_percent":"10.94"},{"lv_uuid":"u2","lv_name":"off",)"
      R"("vg_name":"vg","lv_size":"4096","data_percent":"","metadata_percent":""}]}]})");
  ASSERT_EQ(pools.size(), 1U);
  EXPECT_EQ(pools[0].name, "vg/pool");
  EXPECT_EQ(pools[0].uuid, "u1");
  EXPECT_EQ(pools[0].bytes, 1073741824U);
  EXPECT_EQ(pools[0].data_percent, 81.25);
  EXPECT_EQ(pools[0].metadata_percent, 10.94);
  EXPECT_EQ(code_of([] { lvm::parse_pools("no JSON"); }), EPROTO);
}

// --- the hook ---

TEST(SpaceHook, ItsWordsAndEnvironment) {
  SpaceHookCall call;
  call.program = "/hook";
  call.figures = full_to(83.125);
  call.devices = {"web", "data base"};
  EXPECT_EQ(hook_words(call),
            (Strings{"/hook", "low", "filesystem", "vg/pool", "1000", "831", "web", "data base"}));
  EXPECT_EQ(hook_environment(call, "devices{}"),
            (Strings{"COWD_PERCENT=83.12", "COWD_LVM_CONFIG=devices{}"}));
  call.waiting = true;
  call.kind = SpaceId::Kind::thin_pool;
  call.figures.metadata_percent = 5;
  EXPECT_EQ(hook_words(call)[1], "waiting");
  EXPECT_EQ(hook_words(call)[2], "thin-pool");
  EXPECT_EQ(hook_environment(call, "").back(), "COWD_METADATA_PERCENT=5.00");
}

class SpaceHookFile : public SpaceFiles {
 protected:
  void SetUp() override {
    if (geteuid() != 0) FAIL() << "to be run as root, like all of make check";
  }
  std::string why(const std::string& program, int code) {
    std::string sentence;
    EXPECT_EQ(code_of([&] { check_space_hook(program); }, &sentence), code) << sentence;
    return sentence;
  }
  std::string run(const std::string& script, int code, std::chrono::milliseconds limit = 60s) {
    SpaceHookCall call;
    call.program = file("run", "#!/bin/sh\n" + script, 0700);
    call.limit = limit;
    call.figures = full_to(90);
    call.devices = {"web"};
    std::string said;
    EXPECT_EQ(code_of([&] { said = run_space_hook(call); }, &said), code) << said;
    return said;
  }
};

TEST_F(SpaceHookFile, MustBeRootsAlone) {
  EXPECT_EQ(why(file("good", "", 0700), 0), "");
  EXPECT_NE(why("hook", EINVAL).find("not absolute"), std::string::npos);
  EXPECT_NE(why("/nowhere/hook", ENOENT).find("Correct space.hook"), std::string::npos);
  EXPECT_NE(why(directory_.string(), EACCES).find("no regular file"), std::string::npos);
  EXPECT_NE(why(file("dull", "", 0600), EACCES).find("not executable"), std::string::npos);
  EXPECT_NE(why(file("open", "", 0722), EPERM).find("others than root may write"),
            std::string::npos);
  const std::string theirs = file("theirs", "", 0755);
  ASSERT_EQ(chown(theirs.c_str(), 65534, 65534), 0);
  EXPECT_NE(why(theirs, EPERM).find("does not belong to root"), std::string::npos);
}

TEST_F(SpaceHookFile, SoMustItsDirectories) {
  const std::string program = file("open/in/hook", "", 0700);
  ASSERT_EQ(chmod((directory_ / "open").c_str(), 0777), 0);
  EXPECT_NE(why(program, EPERM).find("/open. Take"), std::string::npos);
  // Neither by a way round it nor to it.
  fs::create_symlink(program, directory_ / "link");
  EXPECT_NE(why((directory_ / "link").string(), EPERM).find("/open. Take"), std::string::npos);
  const std::string good = file("good", "", 0700);
  fs::create_symlink(good, directory_ / "open/link");
  EXPECT_NE(why((directory_ / "open/link").string(), EPERM).find("/open. Take"), std::string::npos);
  ASSERT_EQ(chmod((directory_ / "open").c_str(), 01777), 0);
  EXPECT_EQ(why(program, 0), "");
}

TEST_F(SpaceHookFile, ItsLastLineIsKept) {
  EXPECT_NE(run("echo one; echo made $3 larger for $6; echo", 0).find("ended with status 0 after"),
            std::string::npos);
  EXPECT_TRUE(run("echo one; echo made $3 larger for $6; echo", 0)
                  .ends_with(" and said: made vg/pool larger for web"));
  EXPECT_TRUE(run("exit 0", 0).find(" and said") == std::string::npos);
}

TEST_F(SpaceHookFile, HowItFailedIsTold) {
  EXPECT_TRUE(run("echo out; echo first >&2; echo the group is full >&2; exit 3", EIO)
                  .ends_with("ended with status 3 and said: the group is full"));
  EXPECT_NE(run("kill -9 $$", EIO).find("signal 9"), std::string::npos);
  EXPECT_NE(run("sleep 60", ETIMEDOUT, 500ms).find("did not end"), std::string::npos);
}

TEST_F(SpaceHookFile, IsCheckedEachTime) {
  SpaceHookCall call;
  call.program = file("late", "#!/bin/sh\ntouch " + (directory_ / "ran").string(), 0777);
  EXPECT_EQ(code_of([&] { run_space_hook(call); }), EPERM);
  EXPECT_FALSE(fs::exists(directory_ / "ran"));
}

}  // namespace
}  // namespace cowd
