// SPDX-License-Identifier: GPL-2.0-or-later
// The small things of cowd/core: units, errnos, JSON, UTF-8, locks.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "cowd/core/errno_name.hh"
#include "cowd/core/fd.hh"
#include "cowd/core/file_lock.hh"
#include "cowd/core/host.hh"
#include "cowd/core/json.hh"
#include "cowd/core/units.hh"
#include "cowd/core/utf8.hh"

namespace {

using namespace cowd;
using nlohmann::json;
using namespace std::chrono_literals;

TEST(Units, ParsesSizes) {
  EXPECT_EQ(parse_size("0", "x"), 0u);
  EXPECT_EQ(parse_size("4096", "x"), 4096u);
  EXPECT_EQ(parse_size("512b", "x"), 512u);
  EXPECT_EQ(parse_size("4k", "x"), 4096u);
  EXPECT_EQ(parse_size("4K", "x"), 4096u);
  EXPECT_EQ(parse_size("4KiB", "x"), 4096u);
  EXPECT_EQ(parse_size("1.5G", "x"), 3ull << 29);
  EXPECT_EQ(parse_size("64T", "x"), 64ull << 40);
  EXPECT_EQ(parse_size("7E", "x"), 7ull << 60);
}

TEST(Units, RefusesWhatIsNoSize) {
  for (const char* text : {"", "k", "-1", "1.", ".5k", "1..5k", "4x", "4 k", "4kk", "1.5", "8E",
                           "99999999999999999999", "0x10", "1e3"}) {
    SCOPED_TRACE(text);
    try {
      ADD_FAILURE() << parse_size(text, "--size");
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), EINVAL);
      EXPECT_TRUE(std::string(e.what()).starts_with("--size is '")) << e.what();
    }
  }
}

TEST(Units, PrintsSizesAsQemuImgDoes) {
  EXPECT_EQ(format_size(0), "0 B");
  EXPECT_EQ(format_size(512), "512 B");
  EXPECT_EQ(format_size(4096), "4 KiB");
  EXPECT_EQ(format_size(1ull << 30), "1 GiB");
  EXPECT_EQ(format_size(3ull << 29), "1.5 GiB");
  EXPECT_EQ(format_size(1010 * 1024), "0.986 MiB");
  EXPECT_EQ(format_size(196616), "192 KiB");
  EXPECT_EQ(format_size(64ull << 40), "64 TiB");
}

TEST(Units, Durations) {
  EXPECT_EQ(parse_duration("250ms", "x"), 250ms);
  EXPECT_EQ(parse_duration("10", "x"), 10s);
  EXPECT_EQ(parse_duration("1.5s", "x"), 1500ms);
  EXPECT_EQ(parse_duration("2h", "x"), 2h);
  EXPECT_THROW(parse_duration("", "x"), Error);
  EXPECT_THROW(parse_duration("3d", "x"), Error);
  EXPECT_EQ(format_duration(250ms), "250 ms");
  EXPECT_EQ(format_duration(1500ms), "1.5 s");
  EXPECT_EQ(format_duration(90s), "1.5 min");
}

TEST(Units, Rfc3339) {
  using Clock = std::chrono::system_clock;
  EXPECT_EQ(format_rfc3339(Clock::time_point(1000000000123ms)), "2001-09-09T01:46:40.123Z");
}

TEST(Errno, Names) {
  EXPECT_EQ(errno_name(EBUSY), "EBUSY");
  EXPECT_EQ(errno_name(9999), "E-9999");
  EXPECT_EQ(errno_by_name("ENOSPC"), ENOSPC);
  EXPECT_EQ(errno_by_name("nonsense"), EIO);
  EXPECT_STREQ(system_error(ENOENT, "Opening /x failed").what(),
               "Opening /x failed: No such file or directory.");
}

TEST(Utf8, ValidAndNot) {
  EXPECT_TRUE(is_utf8("a\xc3\xbc\xe2\x82\xac\xf0\x9f\x92\xbe"));
  for (const char* text : {"\x80", "\xc0\xaf", "\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                           "\xe2\x82", "\xf8\x88\x80\x80\x80"})
    EXPECT_FALSE(is_utf8(text)) << text;
}

TEST(Host, KnowsTheBoot) { EXPECT_EQ(boot_id().size(), 36u); }

std::string sentence(auto&& call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), EINVAL);
    return e.what();
  }
  return "it was taken";
}

TEST(JsonArguments, TakesWhatIsRight) {
  const json object = {{"spec", "raw:/x"},
                       {"follow", true},
                       {"since", 7},
                       {"features", {{"a", 1}}},
                       {"name", nullptr}};
  JsonArguments arguments(object, "attach");
  EXPECT_EQ(arguments.need_string("spec"), "raw:/x");
  EXPECT_TRUE(arguments.flag("follow", false));
  EXPECT_EQ(arguments.number("since"), 7u);
  EXPECT_EQ(arguments.string("name"), std::nullopt);
  EXPECT_NE(arguments.object("features"), nullptr);
  EXPECT_EQ(arguments.object("other"), nullptr);
  EXPECT_NO_THROW(arguments.done());
}

TEST(JsonArguments, RefusesByName) {
  const json object = {
      {"spec", 3}, {"follow", "yes"}, {"since", -1}, {"features", 1}, {"colour", 1}};
  JsonArguments a(object, "attach");
  EXPECT_EQ(sentence([&] { a.need_string("device"); }), "attach needs the argument 'device'.");
  EXPECT_EQ(sentence([&] { a.need_string("spec"); }),
            "The argument 'spec' of attach must be a string.");
  EXPECT_NE(sentence([&] { a.flag("follow", true); }).find("true or false"), std::string::npos);
  EXPECT_NE(sentence([&] { a.number("since"); }).find("whole number"), std::string::npos);
  EXPECT_NE(sentence([&] { a.object("features"); }).find("an object"), std::string::npos);
  EXPECT_EQ(sentence([&] { a.done(); }), "attach has no argument 'colour'.");
}

TEST(Json, ErrorsThereAndBack) {
  const json object = error_to_json(Error(EBUSY, "It is busy."), "e-1");
  EXPECT_EQ(object.dump(), R"({"errno":"EBUSY","id":"e-1","message":"It is busy."})");
  const Refusal back = error_from_json(object);
  EXPECT_EQ(back.code(), EBUSY);
  EXPECT_STREQ(back.what(), "It is busy. [e-1]");
  EXPECT_EQ(back.id(), "e-1");
  EXPECT_EQ(back.public_sentence(), "");
  EXPECT_EQ(error_from_json({{"public", "xvda is busy."}}).public_sentence(), "xvda is busy.");
  EXPECT_EQ(error_from_json(json(3)).code(), EIO);
}

TEST(Json, MapMergesWhatContinues) {
  MapEntry a{.range = {0, 8}, .has_offset = true, .offset = 1 << 20, .disk = "/dev/vg/cow"};
  MapEntry b{
      .range = {8, 8}, .has_offset = true, .offset = (1 << 20) + 4096, .disk = "/dev/vg/cow"};
  MapEntry c{
      .range = {16, 16}, .depth = 1, .has_offset = true, .offset = 8192, .disk = "/dev/vg/base"};
  MapEntry hole;
  hole.range = {32, 8};
  hole.present = hole.data = false;
  hole.zero = true;
  const json map = map_to_json({a, b, c, hole});
  ASSERT_EQ(map.size(), 3u);
  EXPECT_EQ(map[0], json::parse(R"({"start":0,"length":8192,"depth":0,"present":true,"zero":false,
    "data":true,"compressed":false,"offset":1048576,"filename":"/dev/vg/cow"})"));
  EXPECT_EQ(map[1]["start"], 8192);
  EXPECT_EQ(map[1]["depth"], 1);
  EXPECT_EQ(map[2],
            json::parse(R"({"start":16384,"length":4096,"depth":0,"present":false,"zero":true,
    "data":false,"compressed":false})"));
}

TEST(Json, Durability) {
  EXPECT_EQ(durability_by_name("always"), Durability::always);
  EXPECT_STREQ(durability_name(Durability::transient), "transient");
  EXPECT_THROW(durability_by_name("sometimes"), Error);
}

TEST(FileLock, IsWaitedForButNotForEver) {
  char path[] = "/tmp/lock-XXXXXX";
  const Fd mine(mkstemp(path));
  Fd theirs(open(path, O_RDONLY | O_CLOEXEC));
  unlink(path);
  ASSERT_EQ(flock(theirs.get(), LOCK_EX), 0);
  const auto began = std::chrono::steady_clock::now();
  EXPECT_FALSE(lock_within(mine.get(), 50ms));
  EXPECT_GE(std::chrono::steady_clock::now() - began, 50ms);
  std::thread other([&] {
    std::this_thread::sleep_for(50ms);
    theirs.reset();
  });
  EXPECT_TRUE(lock_within(mine.get(), 20s));
  other.join();
  EXPECT_FALSE(lock_within(-1, 20s));
}

}  // namespace
