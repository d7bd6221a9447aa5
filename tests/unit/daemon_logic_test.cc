// SPDX-License-Identifier: GPL-2.0-or-later
// The parts of cowd that need neither a kernel nor a reactor: configuration, events,
// who shares what, names, notes, group commit, the shape of answers.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>

#include "cowd/core/error.hh"
#include "cowd/core/loop.hh"
#include "cowd/daemon/commit_group.hh"
#include "cowd/daemon/config.hh"
#include "cowd/daemon/device_entry.hh"
#include "cowd/daemon/event_ring.hh"
#include "cowd/daemon/messages.hh"
#include "cowd/daemon/rate_limit.hh"
#include "cowd/daemon/run_dir.hh"
#include "cowd/daemon/stores.hh"

namespace cowd {
namespace {

using namespace std::chrono_literals;

std::string read_file(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was refused";
}

std::vector<std::string> matches(const std::string& text, const std::string& pattern) {
  std::vector<std::string> found;
  std::regex regex(pattern, std::regex::multiline);
  for (std::sregex_iterator it(text.begin(), text.end(), regex), end; it != end; ++it)
    found.push_back((*it)[1].str());
  return found;
}

// --- configuration ---

TEST(Config, DocumentNamesTheKeysOfTheParser) {
  EXPECT_EQ(matches(read_file("docs/configuration.md"), R"(^\| `([a-z_]+\.[a-z_]+)` \|)"),
            config_keys());
}

// "[table]" lines and "key" lines of a file, as table.key.
std::vector<std::string> keys_in(const std::string& path, const std::string& table_line,
                                 const std::string& key_line) {
  std::vector<std::string> keys;
  std::istringstream in(read_file(path));
  std::string line, table;
  std::smatch match;
  while (std::getline(in, line)) {
    if (line == ".SH EXAMPLE") break;
    if (std::regex_match(line, match, std::regex(table_line)))
      table = match[1];
    else if (!table.empty() && std::regex_match(line, match, std::regex(key_line)))
      keys.push_back(table + "." + match[1].str());
  }
  return keys;
}

TEST(Config, ExampleAndManPageNameTheKeysOfTheParser) {
  EXPECT_EQ(keys_in("packaging/examples/cowd.toml", R"(\[(\w+)\])", R"(#(\w+) = .*)"),
            config_keys());
  EXPECT_EQ(keys_in("docs/man/cowd.toml.5", R"(\.SH \[(\w+)\])", R"(\.B (\w+))"), config_keys());
}

// A line of the example is the default of the document, or stands below a comment on it.
TEST(Config, ExampleHasTheDefaultsOrSaysWhatTheyAre) {
  std::istringstream document(read_file("docs/configuration.md"));
  std::istringstream example(read_file("packaging/examples/cowd.toml"));
  std::map<std::string, std::string> defaults;
  std::string line, before, table;
  std::smatch match;
  while (std::getline(document, line))
    if (std::regex_match(line, match, std::regex(R"(\| `(\w+\.\w+)` \| (.*?) \| .*)")))
      defaults[match[1]] = match[2];
  EXPECT_EQ(defaults.size(), config_keys().size());
  for (; std::getline(example, line); before = line) {
    if (std::regex_match(line, match, std::regex(R"(\[(\w+)\])"))) table = match[1];
    if (!std::regex_match(line, match, std::regex(R"(#(\w+) = (.*))"))) continue;
    const std::string value = "`" + match[2].str() + "`";
    const std::string said = defaults[table + "." + match[1].str()];
    EXPECT_TRUE(value == said || before.starts_with("# By default "))
        << line << " is not the default, " << said;
  }
}

TEST(Config, ExampleIsRightAlsoWithoutItsCommentSigns) {
  std::string example = read_file("packaging/examples/cowd.toml");
  EXPECT_NO_THROW(parse_config(example, "cowd.toml"));
  std::string active = std::regex_replace(example, std::regex("\n#(\\w+ = )"), "\n$1");
  Config config = parse_config(active, "cowd.toml");
  EXPECT_EQ(config.devices.session.commit_interval, 500ms);
  EXPECT_EQ(config.devices.session.max_requests, 256U);
  EXPECT_TRUE(config.devices.queue_if_no_daemon);
}

TEST(Config, EmptyFileGivesTheDefaults) {
  Config config = parse_config("", "cowd.toml");
  EXPECT_EQ(config.socket_path(), config.paths.run_dir + "/control.sock");
  EXPECT_TRUE(config.process.lock_memory);
}

TEST(Config, TakesValues) {
  Config config = parse_config(
      "[log]\nlevel = \"debug\"\ntargets = [\"file\", \"syslog\"]\nfile = \"/tmp/x\"\n"
      "[devices]\nno_space = \"fail\"\ndurability = \"always\"\nno_daemon = \"fail\"\n"
      "metadata_cache = \"64M\"\n",
      "cowd.toml");
  EXPECT_EQ(config.log.level, Level::debug);
  EXPECT_EQ(config.log.targets, (std::vector{LogTarget::file, LogTarget::syslog}));
  EXPECT_EQ(config.devices.session.no_space, SessionSettings::NoSpace::fail);
  EXPECT_EQ(config.devices.durability, Durability::always);
  EXPECT_FALSE(config.devices.queue_if_no_daemon);
  EXPECT_EQ(config.devices.metadata_cache, 64U << 20);
}

TEST(Config, RefusesByNameAndLine) {
  struct Case {
    const char* content;
    const char* words;
  };
  for (const Case& each : {
           Case{"[log]\nlevel = \"info\"\nlevle = 1\n", "cowd.toml:3: there is no key levle"},
           Case{"\n[logs]\nlevel = 1\n", "cowd.toml:2: there is no table [logs]"},
           Case{"[log]\nlevel = \"loud\"\n", "cowd.toml:2: log.level has to be one of"},
           Case{"[process]\nthreads = 0\n", "process.threads has to be a whole number from 1"},
           Case{"[process]\nthreads = \"4\"\n", "process.threads has to be a whole number"},
           Case{"[devices]\ncommit_interval = \"1h\"\n",
                "devices.commit_interval has to be a time"},
           Case{"[devices]\nmetadata_cache = \"4k\"\n",
                "devices.metadata_cache has to be a size from 1 MiB to 1 GiB"},
           Case{"[paths]\nsocket = \"here\"\n", "paths.socket has to be an absolute path"},
           Case{"[log]\ntargets = [\"file\"]\n", "log.file has to name one"},
           Case{"[log]\ntargets = []\n", "log.targets has to hold at least one"},
           Case{"[space]\nlow = 99\n", "space.low has to be a whole number from 10 to 95"},
           Case{"[space]\nhook = \"extend\"\n", "space.hook has to be an absolute path"},
           Case{"[log\n", "cowd.toml"},
           Case{"paths = 4\n", "paths has to be a table"},
       })
    EXPECT_NE(refusal([&] { parse_config(each.content, "cowd.toml"); }).find(each.words),
              std::string::npos)
        << each.content << refusal([&] { parse_config(each.content, "cowd.toml"); });
}

TEST(Config, MissingFileIsASentence) {
  EXPECT_NE(refusal([] { load_config("/nowhere/cowd.toml"); }).find("/nowhere/cowd.toml"),
            std::string::npos);
}

// --- events, rates ---

TEST(EventRing, KeepsTheLastThousand) {
  EventRing ring;
  for (int i = 0; i < 1500; ++i) ring.add("attached", "disk", "A sentence.");
  auto events = ring.after(0);
  ASSERT_EQ(events.size(), EventRing::kCapacity);
  EXPECT_EQ(events.front().number, 501U);
  EXPECT_EQ(events.back().number, ring.last());
  EXPECT_EQ(ring.after(1499).size(), 1U);
  EXPECT_EQ(ring.after(1500).size(), 0U);
}

TEST(EventRing, WakesSubscribersUntilTheyLeave) {
  EventRing ring;
  int woken = 0;
  auto subscription = ring.subscribe([&] { ++woken; });
  ring.add("started", "", "One.");
  ring.unsubscribe(subscription);
  ring.add("started", "", "Two.");
  EXPECT_EQ(woken, 1);
}

TEST(RateLimit, CountsWhatItHoldsBack) {
  RateLimit limit(2, 10s);
  auto now = RateLimit::Clock::now();
  EXPECT_EQ(limit.pass(now), 0U);
  EXPECT_EQ(limit.pass(now), 0U);
  EXPECT_FALSE(limit.pass(now + 1s));
  EXPECT_FALSE(limit.pass(now + 9s));
  EXPECT_EQ(limit.pass(now + 11s), 2U);
}

// --- sharing, names, notes ---

TEST(Stores, OneWriterOrManyReaders) {
  Stores stores;
  StoreIdentity cow{true, 1, 0, {}}, base{true, 2, 0, {}};
  stores.claim("a", cow, true, "/dev/cow");
  stores.claim("a", base, false, "/dev/base");
  stores.claim("b", base, false, "/dev/base");
  EXPECT_NE(refusal([&] { stores.claim("c", cow, true, "/dev/cow"); }).find("store of a"),
            std::string::npos);
  EXPECT_THROW(stores.claim("c", cow, false, "/dev/cow"), Error);
  EXPECT_NE(refusal([&] { stores.claim("c", base, true, "/dev/base"); }).find("base of a"),
            std::string::npos);
  stores.release("a");
  EXPECT_THROW(stores.claim("c", base, true, "/dev/base"), Error);
  stores.release("b");
  EXPECT_NO_THROW(stores.claim("c", base, true, "/dev/base"));
  EXPECT_NO_THROW(stores.claim("d", cow, true, "/dev/cow"));
  // Who tries once more to take up its image; but nobody lies on what it writes to itself.
  EXPECT_NO_THROW(stores.claim("d", cow, true, "/dev/cow"));
  EXPECT_THROW(stores.claim("d", cow, false, "/dev/cow"), Error);
}

TEST(Stores, TellsWhoIsHinderedBySomebodyElse) {
  Stores stores;
  const StoreIdentity top{true, 1, 0, {}}, base{true, 2, 0, {}}, other{true, 3, 0, {}};
  stores.claim("d", top, true, "/dev/top");
  stores.claim("d", base, false, "/dev/base");
  EXPECT_EQ(stores.hindered(top, false), "d");
  EXPECT_EQ(stores.hindered(top, true), "d");
  EXPECT_EQ(stores.hindered(base, false), "");
  EXPECT_EQ(stores.hindered(base, true), "d");
  EXPECT_EQ(stores.hindered(other, true), "");
}

// However it is asked for: by its path, through a loop device, by that device's number.
TEST(Stores, KnowsAFileBehindALoopDevice) {
  const std::string path = testing::TempDir() + "behind-loop";
  std::ofstream(path) << std::string(1 << 20, 'x');
  const auto loop = LoopDevice::attach(path, LoopDevice::Use::base);
  Component file, device;
  file.path = path;
  device.path = loop->path();
  struct stat info {};
  ASSERT_EQ(stat(loop->path().c_str(), &info), 0);
  EXPECT_EQ(identify_store(device), identify_store(file));
  EXPECT_EQ(identify_device(info.st_rdev), identify_store(file));
  EXPECT_EQ(identify_device(makedev(1, 3)), (StoreIdentity{true, makedev(1, 3), 0, {}}));
  std::filesystem::remove(path);
}

TEST(Stores, KnowsAFileByWhatItsPathResolvesTo) {
  std::string dir = testing::TempDir() + "stores";
  std::filesystem::create_directories(dir);
  std::ofstream(dir + "/file") << "x";
  std::filesystem::remove(dir + "/link");
  std::filesystem::create_symlink(dir + "/file", dir + "/link");
  auto identify = [](const std::string& path) {
    Component component;
    component.path = path;
    return identify_store(component);
  };
  EXPECT_EQ(identify(dir + "/file"), identify(dir + "/link"));
  EXPECT_NE(identify(dir + "/file"), identify("/dev/null"));
  EXPECT_THROW(identify(dir + "/none"), Error);
}

TEST(DeviceName, ComesFromTheTopAndIsFree) {
  EXPECT_EQ(default_device_name("/dev/vg/cow", {}), "dmu-vg-cow");
  EXPECT_EQ(default_device_name("/dev/mapper/vg-cow", {}), "dmu-vg-cow");
  EXPECT_EQ(default_device_name("/srv/images/a b.dscow", {}), "dmu-a-b.dscow");
  EXPECT_EQ(default_device_name("/dev/vg/cow", {"dmu-vg-cow", "dmu-vg-cow-2"}), "dmu-vg-cow-3");
  EXPECT_NO_THROW(check_device_name(default_device_name("/" + std::string(300, 'x'), {})));
}

TEST(DeviceName, RefusesWhatIsNoName) {
  for (const char* name : {"", "a/b", ".hidden", "-x", "a b", "control", "ä", "../../etc"})
    EXPECT_THROW(check_device_name(name), Error) << name;
  EXPECT_THROW(check_device_name(std::string(101, 'x')), Error);
  EXPECT_NO_THROW(check_device_name("disk_1.a:b@c=d+e#f"));
}

DeviceEntry an_entry(const std::string& name) {
  DeviceEntry entry;
  entry.name = name;
  entry.uuid = "DMU-1";
  entry.key = "1";
  entry.spec = "raw:/dev/x";
  entry.format = "raw";
  entry.durability = Durability::always;
  entry.paused = true;
  entry.max_extents = 7;
  entry.top_mapped = false;
  entry.domain.vm_uuid = "c0ffee00-0000-4000-8000-000000000001";
  entry.domain.vdev = "xvda";
  entry.domain.vbds = {"backend/vbd/3/51712"};
  entry.domain.last_vbd = "backend/vbd/2/51712";
  entry.domain.keep = true;
  return entry;
}

std::string fresh_directory(const std::string& name) {
  std::string path = testing::TempDir() + name;
  std::filesystem::remove_all(path);
  return path;
}

TEST(RunDir, GivesBackWhatWasNoted) {
  RunDir dir(fresh_directory("notes"));
  dir.write(an_entry("one"));
  dir.write(an_entry("two"));
  dir.write(an_entry("one"));
  std::ofstream(dir.path() + "/devices.d/bad.json") << "{";
  std::ofstream(dir.path() + "/devices.d/three.json.new") << "half";
  auto listing = dir.list();
  EXPECT_EQ(listing.entries.size(), 2U);
  EXPECT_EQ(listing.complaints.size(), 1U);
  EXPECT_FALSE(std::filesystem::exists(dir.path() + "/devices.d/three.json.new"));
  auto& entry = listing.entries[0];
  EXPECT_EQ(to_json(entry), to_json(an_entry(entry.name)));
  dir.remove("one");
  EXPECT_EQ(dir.list().entries.size(), 1U);
}

// Guests run on while cowd is upgraded.
TEST(RunDir, NotesOfAnOlderCowdAreRead) {
  nlohmann::json json = to_json(an_entry("one"));
  json["domain"].erase("last_vbd");
  json.erase("top_mapped");
  const DeviceEntry entry = entry_from_json(json);
  EXPECT_EQ(entry.domain.last_vbd, "");
  EXPECT_TRUE(entry.domain.keep);
  EXPECT_TRUE(entry.top_mapped);
}

TEST(RunDir, ASecondOneIsRefusedUntilTheFirstIsGone) {
  std::string path = fresh_directory("lock");
  {
    RunDir first(path);
    EXPECT_NE(refusal([&] { RunDir second(path); }).find("Another cowd (process "),
              std::string::npos);
  }
  EXPECT_NO_THROW(RunDir(path).list());
}

TEST(RunDir, AWriteThatFailsLeavesTheOldNote) {
  RunDir dir(fresh_directory("full"));
  dir.write(an_entry("one"));
  // A directory in the way of the temporary file stands for a file system that is full.
  std::filesystem::create_directories(dir.path() + "/devices.d/one.json.new/x");
  EXPECT_NE(refusal([&] { dir.write(an_entry("one")); }).find("restarted cowd would not know"),
            std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(dir.path() + "/devices.d/one.json"));
}

// --- group commit ---

struct Outcomes {
  std::vector<std::string> list;
  CommitGroup::Waiter as(const std::string& name) {
    return [this, name](const Error* error) {
      list.push_back(name + (error ? " failed" : " durable"));
    };
  }
};

TEST(CommitGroup, AFlushCoversWhatItAskedForAndNeedsNoDataFlush) {
  CommitGroup group;
  Outcomes outcomes;
  group.promoted(3);
  group.flush(3, outcomes.as("flush"));
  group.promoted(4);  // after the kernel's flush
  auto round = group.begin(false);
  ASSERT_TRUE(round);
  EXPECT_EQ(round->seq, 3U);
  EXPECT_TRUE(round->data_flushed);
  EXPECT_FALSE(round->tell);
  EXPECT_TRUE(outcomes.list.empty());
  group.finish(nullptr);
  EXPECT_EQ(outcomes.list, std::vector<std::string>{"flush durable"});
  EXPECT_TRUE(group.dirty());
}

TEST(CommitGroup, OneAtATimeAndTheNextTakesAllThatWaited) {
  CommitGroup group;
  Outcomes outcomes;
  group.promoted(1);
  group.flush(1, outcomes.as("a"));
  ASSERT_TRUE(group.begin(false));
  group.promoted(5);
  group.flush(4, outcomes.as("b"));
  group.flush(5, outcomes.as("c"));
  EXPECT_FALSE(group.begin(true));
  group.finish(nullptr);
  auto round = group.begin(false);
  ASSERT_TRUE(round);
  EXPECT_EQ(round->seq, 5U);
  group.finish(nullptr);
  EXPECT_EQ(outcomes.list, (std::vector<std::string>{"a durable", "b durable", "c durable"}));
}

TEST(CommitGroup, ADoneNeedsADataFlushAndIsToldOf) {
  CommitGroup group;
  Outcomes outcomes;
  group.promoted(2);
  group.done(2, outcomes.as("done"));
  auto round = group.begin(false);
  ASSERT_TRUE(round);
  EXPECT_EQ(round->seq, 2U);
  EXPECT_FALSE(round->data_flushed);
  EXPECT_TRUE(round->tell);
  group.finish(nullptr);
  // Covered by that one already, and a plain write, of which nobody knows.
  group.done(2, outcomes.as("late"));
  group.done(0, outcomes.as("plain"));
  EXPECT_EQ(outcomes.list, (std::vector<std::string>{"done durable", "late durable"}));
  round = group.begin(false);
  ASSERT_TRUE(round);
  EXPECT_FALSE(round->data_flushed);
  EXPECT_FALSE(round->tell);
  group.finish(nullptr);
  EXPECT_EQ(outcomes.list.back(), "plain durable");
}

TEST(CommitGroup, AFinishedCommitReleasesLaterOnesThatItCovers) {
  CommitGroup group;
  Outcomes outcomes;
  group.promoted(9);
  ASSERT_TRUE(group.begin(true));
  group.flush(8, outcomes.as("flush"));
  group.done(0, outcomes.as("plain"));
  group.finish(nullptr);
  EXPECT_EQ(outcomes.list, std::vector<std::string>{"flush durable"});
  EXPECT_TRUE(group.waiting());
}

TEST(CommitGroup, AFailureFailsThoseOfThatCommitOnly) {
  CommitGroup group;
  Outcomes outcomes;
  group.promoted(1);
  group.flush(1, outcomes.as("a"));
  ASSERT_TRUE(group.begin(false));
  group.flush(1, outcomes.as("b"));
  Error error(EIO, "The disk is broken.");
  group.finish(&error);
  EXPECT_EQ(outcomes.list, std::vector<std::string>{"a failed"});
  EXPECT_TRUE(group.dirty());
  ASSERT_TRUE(group.begin(false));
  group.finish(nullptr);
  EXPECT_EQ(outcomes.list.back(), "b durable");
  EXPECT_FALSE(group.begin(true));
}

TEST(CommitGroup, WithoutRoomFlushesWaitForTheNextAndOthersAreTold) {
  CommitGroup group;
  Outcomes outcomes;
  group.promoted(2);
  group.flush(1, outcomes.as("a"));
  group.all(outcomes.as("all"));
  ASSERT_TRUE(group.begin(false));
  group.done(2, outcomes.as("b"));
  group.all(outcomes.as("late all"));
  group.finish_later(Error(ENOSPC, "There is no room."));
  EXPECT_EQ(outcomes.list, (std::vector<std::string>{"all failed", "late all failed"}));
  EXPECT_TRUE(group.dirty());
  auto round = group.begin(false);
  ASSERT_TRUE(round);
  EXPECT_EQ(round->seq, 2U);
  EXPECT_FALSE(round->data_flushed) << "b was not flushed";
  group.finish(nullptr);
  EXPECT_EQ(outcomes.list,
            (std::vector<std::string>{"all failed", "late all failed", "a durable", "b durable"}));
}

TEST(CommitGroup, VolatilePromotionsAskForNothing) {
  CommitGroup group;
  group.promoted(0);
  EXPECT_FALSE(group.dirty());
  EXPECT_FALSE(group.begin(true));
}

// --- messages ---

Extent plain(uint64_t sector, uint64_t len) {
  Extent extent;
  extent.range = {sector, len};
  extent.read = Side::at(1, sector);
  return extent;
}

TEST(Messages, AnExtentBecomesAMap) {
  Extent extent = plain(8, 16);
  extent.write = Side::at(0, 100);
  extent.granule = 8;
  extent.sync = true;
  dmu_msg msg = answer_message(5, extent).msg;
  EXPECT_EQ(msg.type, static_cast<uint32_t>(DMU_MSG_MAP));
  EXPECT_EQ(msg.id, 5U);
  EXPECT_EQ(msg.gen, 0U);
  EXPECT_EQ(msg.read_dest, 1U);
  EXPECT_EQ(msg.read_sector, 8U);
  EXPECT_EQ(msg.write_dest, 0U);
  EXPECT_EQ(msg.write_sector, 100U);
  EXPECT_EQ(msg.granule, 8U);
  EXPECT_EQ(msg.flags, DMU_F_OVERLAY | DMU_F_SYNC);
}

TEST(Messages, SidesThatAreNoDisk) {
  Extent extent = plain(0, 8);
  extent.read = Side::zeroes();
  extent.temporary = true;
  dmu_msg msg = answer_message(1, extent).msg;
  EXPECT_EQ(msg.read_dest, DMU_DEST_ZERO);
  EXPECT_EQ(msg.read_sector, 0U);
  EXPECT_EQ(msg.write_dest, DMU_DEST_NONE);
  EXPECT_FALSE(can_push(extent));
  EXPECT_FALSE(can_push(Data{}));
}

TEST(Messages, OnlyOneAnswerCarriesTheId) {
  std::vector<Answer> answers{plain(0, 8), plain(8, 8), plain(16, 8)};
  auto messages = fault_answers(7, 3, {8, 8}, answers);
  ASSERT_EQ(messages.size(), 3U);
  EXPECT_EQ(messages[0].msg.id, 0U);
  EXPECT_EQ(messages[0].msg.gen, 3U);
  EXPECT_EQ(messages[1].msg.id, 0U);
  EXPECT_EQ(messages[2].msg.id, 7U);
  EXPECT_EQ(messages[2].msg.sector, 8U);
}

// A write that the id lets go on would ask for bits that come behind it.
TEST(Messages, BitsFollowTheirOverlayAndComeBeforeTheId) {
  Extent overlay = plain(0, 1 << 20);
  overlay.write = Side::at(0, 2048);
  overlay.granule = 8;
  Bitmap bits;
  bits.range = {0, 8 * DMU_LEAF_GRANULES};
  bits.bits.resize(16);
  auto messages = fault_answers(7, 3, {64, 8}, {overlay, bits});
  ASSERT_EQ(messages.size(), 3U);
  EXPECT_EQ(messages[0].msg.type, static_cast<uint32_t>(DMU_MSG_MAP));
  EXPECT_EQ(messages[0].msg.id, 0U);
  EXPECT_EQ(messages[0].msg.gen, 3U);
  EXPECT_EQ(messages[1].msg.type, static_cast<uint32_t>(DMU_MSG_BITMAP));
  EXPECT_EQ(messages[1].msg.gen, 3U);
  EXPECT_EQ(messages[1].msg.data_len, 16U);
  EXPECT_EQ(messages[2].msg.type, static_cast<uint32_t>(DMU_MSG_MAP));
  EXPECT_EQ(messages[2].msg.id, 7U);
}

TEST(Messages, NoAnswerToTheStartIsNone) {
  EXPECT_TRUE(fault_answers(7, 3, {64, 8}, {plain(0, 8)}).empty());
}

}  // namespace
}  // namespace cowd
