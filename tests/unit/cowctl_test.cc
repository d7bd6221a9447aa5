// SPDX-License-Identifier: GPL-2.0-or-later
// The program itself: run against a format made for this test and against a cowd in
// this process that answers by script.
#include <utility>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/wait.h>
#include <unistd.h>

#include "build/config.h"
#include "cowd/core/json_lines.hh"
#include "cowd/core/left_events.hh"
#include "cowd/cowctl/host_settings.hh"
#include "cowd/cowctl/output.hh"
#include "cowd/cowctl/progress.hh"

namespace {

using cowd::JsonLines;
using cowd::Task;
using nlohmann::json;
namespace asio = boost::asio;
namespace fs = std::filesystem;
using asio::local::stream_protocol;

std::string read_file(const fs::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

struct Outcome {
  int status = -1;
  std::string out;
  std::string err;
};

// A cowd that has one answer for each command. Requests are kept.
class FakeCowd {
 public:
  explicit FakeCowd(const std::string& path)
      : path_(path), acceptor_(io_, stream_protocol::endpoint(path)) {
    asio::co_spawn(io_, accept(), asio::detached);
    thread_ = std::thread([this] { io_.run(); });
  }
  ~FakeCowd() {
    io_.stop();
    thread_.join();
    fs::remove(path_);
  }

  std::map<std::string, std::string> answers;  // "cmd" to lines, or "say nothing"
  std::atomic<int> hang_ups{0};                // requests to answer so, before the others
  std::chrono::milliseconds late{0};           // before the last line of an answer
  std::vector<json> requests;
  std::atomic<int> goodbyes{0};  // clients that have closed their connection

 private:
  Task<> accept() {
    for (;;) {
      auto socket = co_await acceptor_.async_accept(asio::use_awaitable);
      asio::co_spawn(io_, serve(std::move(socket)), asio::detached);
    }
  }

  Task<> serve(stream_protocol::socket socket) {
    JsonLines lines(std::move(socket));
    while (const auto request = co_await lines.read()) {
      requests.push_back(*request);
      if (hang_ups > 0) {
        --hang_ups;
        co_return;
      }
      const auto at = answers.find((*request)["cmd"]);
      const std::string text =
          at != answers.end()
              ? at->second
              : R"({"ok":false,"error":{"errno":"ENODEV","message":"cowd serves no such device."}})"
                "\n";
      if (text != "say nothing") co_await say(lines, text);
    }
    ++goodbyes;
  }

  Task<> say(JsonLines& lines, const std::string& text) {
    const size_t last = late.count() ? text.rfind('\n', text.size() - 2) + 1 : 0;
    co_await asio::async_write(lines.socket(), asio::buffer(text, last), asio::use_awaitable);
    asio::steady_timer timer(io_, late);
    co_await timer.async_wait(asio::use_awaitable);
    co_await asio::async_write(lines.socket(), asio::buffer(text) + last, asio::use_awaitable);
  }

  std::string path_;
  asio::io_context io_;
  stream_protocol::acceptor acceptor_;
  std::thread thread_;
};

class Cowctl : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = fs::temp_directory_path() / ("cowctl_test." + std::to_string(getpid()));
    fs::create_directory(dir_);
    socket_ = dir_ / "control.sock";
  }
  void TearDown() override { fs::remove_all(dir_); }

  // `arguments` go through the shell; %d in them is the scratch directory.
  Outcome run(std::string arguments) {
    for (size_t at; (at = arguments.find("%d")) != std::string::npos;)
      arguments.replace(at, 2, dir_.string());
    const std::string command = program_ + " --plugin-dir build/tests/unit/plugins --socket " +
                                socket_ + " " + arguments + " >" + (dir_ / "out").string() + " 2>" +
                                (dir_ / "err").string();
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_file(dir_ / "out"),
            read_file(dir_ / "err")};
  }

  // Exit 1 and one line on stderr with `part` in it.
  void refused(const std::string& arguments, const std::string& part) {
    SCOPED_TRACE(arguments);
    const Outcome result = run(arguments);
    EXPECT_EQ(result.status, 1);
    EXPECT_TRUE(result.err.starts_with("cowctl: ")) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_TRUE(result.err.ends_with(".\n") || result.err.ends_with("]\n")) << result.err;
    EXPECT_EQ(result.out, "");
  }

  std::string program_ = "build/bin/cowctl";
  fs::path dir_;
  std::string socket_;
};

TEST_F(Cowctl, NamesBadArguments) {
  refused("", "subcommand is required");
  refused("frobnicate", "'frobnicate'");
  refused("list --colour", "--colour");
  refused("list extra", "extra");
  refused("create", "SPEC is required");
  refused("attach raw:/x --durability often", "often");
  refused("attach raw:/x --max-extents many", "many");
  refused("events --since x", "--since");
  refused("create toy", "names no TOP");
  refused("create toy:relative 1M", "must begin with /");
  refused("create toy:%d/x 1Z", "SIZE is '1Z'");
  refused("create toy:%d/x -o errors 1M", "NAME=VALUE");
  refused("create toy:%d/x -o leaks=1,leaks=2 1M", "twice");
  refused("create nosuch:%d/x 1M", "There is no format 'nosuch'");
  refused("create wrongabi:%d/x 1M", "plugin ABI");
  refused("check toy:%d/x --repair --force-share", "does not go with --repair");
  refused("check toy:%d/x", "does not exist");
  refused("check toy:/tmp", "a directory");
}

TEST_F(Cowctl, HelpAndVersion) {
  EXPECT_EQ(run("--help").status, 0);
  EXPECT_NE(run("create --help").out.find("--force"), std::string::npos);
  EXPECT_TRUE(run("--version").out.starts_with("cowctl "));
  const Outcome offline = run("version --json");
  EXPECT_EQ(offline.status, 0);
  EXPECT_TRUE(json::parse(offline.out)["cowd"].is_null());
}

TEST_F(Cowctl, CreatesAndDescribes) {
  const Outcome made = run("create toy:%d/x 4M -o errors=0,leaks=0");
  EXPECT_EQ(made.status, 0) << made.err;
  EXPECT_NE(made.out.find("a disk of"), std::string::npos);
  EXPECT_EQ(run("-q create toy:%d/x2 4M -o errors=0 -o leaks=0").out, "");

  const Outcome info = run("info toy:%d/x");
  EXPECT_EQ(info.status, 0) << info.err;
  EXPECT_TRUE(info.out.starts_with("image: " + (dir_ / "x").string() +
                                   "\nfile format: toy\nvirtual size: "))
      << info.out;
  const json object = json::parse(run("info --json toy:%d/x").out);
  EXPECT_EQ(object["format"], "toy");
  EXPECT_EQ(object["line"], "toy 0 0");
  EXPECT_EQ(object["filename"], (dir_ / "x").string());
}

TEST_F(Cowctl, LeavesNoFileBehindWhenCreateFails) {
  refused("create toy:%d/x 4M -o colour=red", "no option colour");
  EXPECT_FALSE(fs::exists(dir_ / "x"));
  refused("create toy:/dev/nonexistent/x 4M", "does not exist");
  refused("create toy:%d/x", "neither SIZE nor BASE");
}

TEST_F(Cowctl, LeavesNoFileBehindWhenCreateIsInterrupted) {
  program_ = "timeout --preserve-status -s INT 0.3 build/bin/cowctl";
  refused("create toy:%d/x 4M -o hang=1", "was stopped before it had ended");
  EXPECT_FALSE(fs::exists(dir_ / "x"));
}

TEST_F(Cowctl, ListsCreateOptions) {
  const Outcome help = run("create toy:%d/x -o help");
  EXPECT_EQ(help.status, 0);
  EXPECT_EQ(help.out,
            "Option        Meaning\nerrors        how many a check is to find\n"
            "leaks         the same\nmilliseconds  how long it takes\n");
}

TEST_F(Cowctl, CheckExitsAsQemuImgDoes) {
  run("create toy:%d/sound 4M -o errors=0,leaks=0");
  run("create toy:%d/corrupt 4M -o errors=3,leaks=1");
  run("create toy:%d/leaky 4M -o errors=0,leaks=2");
  EXPECT_EQ(run("check toy:%d/sound").status, 0);
  EXPECT_EQ(run("check toy:%d/leaky").status, 3);
  EXPECT_EQ(run("check toy:%d/corrupt --repair").status, 0);
  EXPECT_EQ(run("check nocheck:%d/sound").status, 63);
  std::ofstream(dir_ / "text") << std::string(4096, 'x');
  EXPECT_EQ(run("check toy:%d/text").status, 1);

  const Outcome corrupt = run("check toy:%d/corrupt");
  EXPECT_EQ(corrupt.status, 2);
  EXPECT_EQ(
      corrupt.out,
      "A toy is broken.\n3 errors were found on the image.\n"
      "1 leak was found: wasted space, no harm to data.\n64/256 granules = 25.00% allocated\n");
  const Outcome as_json = run("check --json toy:%d/corrupt");
  EXPECT_EQ(as_json.status, 2);
  EXPECT_EQ(json::parse(as_json.out)["corruptions"], 3);
  EXPECT_EQ(json::parse(as_json.out)["leaks"], 1);
}

TEST_F(Cowctl, ShowsProgressAfterASecond) {
  run("create toy:%d/slow 4M -o errors=0,leaks=0,milliseconds=1300");
  run("create toy:%d/quick 4M -o errors=0,leaks=0,milliseconds=1");
  const std::string line = "checking " + (dir_ / "slow").string() + ": 50.0 %";
  const Outcome asked = run("check --progress toy:%d/slow");
  EXPECT_EQ(asked.status, 0);
  EXPECT_TRUE(asked.err.starts_with(line + '\n')) << asked.err;
  EXPECT_EQ(run("check --progress toy:%d/quick").err, "");
  EXPECT_EQ(run("check toy:%d/slow").err, "");
  EXPECT_EQ(run("check --progress --quiet toy:%d/slow").err, "");

  std::ofstream(dir_ / "on-terminal") << "exec script -qec \"build/bin/cowctl $*\" /dev/null\n";
  program_ = "sh " + (dir_ / "on-terminal").string();
  const std::string shown = run("check toy:%d/slow").out;
  const size_t first = shown.find('\r' + line + "\033[K");
  ASSERT_NE(first, std::string::npos) << shown;
  const size_t erased = shown.find("\r\033[K", first + 1);
  ASSERT_NE(erased, std::string::npos) << shown;
  EXPECT_EQ(shown.find(line, erased), std::string::npos) << "It is not erased at the end.";
  EXPECT_EQ(run("--quiet check toy:%d/slow").out.find(line), std::string::npos);
}

TEST_F(Cowctl, MapsInQemuImgsSchema) {
  std::ofstream(dir_ / "x") << "toy 0 0\n";
  fs::resize_file(dir_ / "x", 512 * 1024);
  const json map = json::parse(run("map --json toy:%d/x").out);
  ASSERT_EQ(map.size(), 6u);
  EXPECT_EQ(map[0], json::parse(R"({"start":0,"length":65536,"depth":0,"present":true,"zero":false,
    "data":true,"compressed":false,"offset":0,"filename":"/store"})"));
  EXPECT_EQ(map[1]["depth"], 1);
  EXPECT_EQ(map[2], json::parse(R"({"start":131072,"length":131072,"depth":0,"present":false,
    "zero":true,"data":false,"compressed":false})"));

  EXPECT_EQ(run("map toy:%d/x --start-offset 256k --max-length 128k").out,
            "Offset          Length          Mapped to       File\n"
            "0x40000         0x10000         0x40000         /store\n"
            "0x50000         0x10000         0x50000         /base\n");
  EXPECT_EQ(run("map toy:%d/x --json --max-length 0").out, "[]\n");
  refused("map toy:%d/x --start-offset 100", "multiples of 512");
  refused("map toy:%d/x --start-offset 1G", "behind the end");
}

TEST_F(Cowctl, SaysThatNoCowdIsThere) {
  for (const char* command : {"list", "stats", "events", "detach d1", "pause d1", "resume d1",
                              "info d1", "map d1", "log-level debug", "attach raw:/dev/vg/x"})
    refused(command, "No cowd listens on " + socket_);
}

constexpr const char* kDevice =
    R"({"name":"d1","path":"/dev/mapper/d1","spec":"raw:/dev/vg/x","format":"raw",)"
    R"("durability":"flush","state":"active","size":1073741824,"read_only":false,"open_count":2})";

std::string ok(const std::string& result) { return "{\"ok\":true,\"result\":" + result + "}\n"; }

TEST_F(Cowctl, ListsDevices) {
  FakeCowd cowd(socket_);
  cowd.answers["list"] = ok("{\"devices\":[" + std::string(kDevice) + "]}");
  EXPECT_EQ(run("list").out,
            "Name   Size  Format  Durability  State   Open  Specification\n"
            "d1    1 GiB  raw     flush       active     2  raw:/dev/vg/x\n");
  EXPECT_EQ(json::parse(run("list --json").out)["devices"][0]["name"], "d1");
}

TEST_F(Cowctl, ListSaysWhoWaitsForRoomAndWhere) {
  FakeCowd cowd(socket_);
  json device = json::parse(kDevice);
  device["state"] = "waiting-for-space";
  device["waiting_for_space"] = {
      {"destination", "/srv/x"}, {"since", "2026-11-22T00:00:00Z"}, {"writes", 3}};
  cowd.answers["list"] = ok(json{{"devices", {device}}}.dump());
  cowd.answers["info"] = ok(device.dump());
  const std::string listed = run("list").out;
  EXPECT_NE(listed.find("  waiting-for-space  "), std::string::npos);
  EXPECT_TRUE(
      listed.ends_with("\nd1: writes wait for room on /srv/x since 2026-11-22T00:00:00Z\n"));
  EXPECT_EQ(json::parse(run("list --json").out)["devices"][0]["waiting_for_space"]["writes"], 3);
  EXPECT_NE(run("info d1").out.find("waiting for space:\n    destination: /srv/x\n"),
            std::string::npos);
}

TEST_F(Cowctl, AttachSendsWhatWasAsked) {
  FakeCowd cowd(socket_);
  cowd.answers["attach"] = ok(kDevice);
  const Outcome plain = run("attach dmu:raw:/dev/vg/x");
  EXPECT_EQ(plain.out, "/dev/mapper/d1\n");
  run("attach raw:/dev/vg/x --name d1 --durability always --read-only --no-daemon fail "
      "--no-daemon-seconds 5 --max-extents 1000 --json");
  ASSERT_EQ(cowd.requests.size(), 2u);
  EXPECT_EQ(cowd.requests[0], json::parse(R"({"cmd":"attach","spec":"raw:/dev/vg/x"})"));
  EXPECT_EQ(cowd.requests[1], json::parse(R"({"cmd":"attach","spec":"raw:/dev/vg/x","name":"d1",
    "durability":"always","read_only":true,
    "features":{"no_daemon":"fail","no_daemon_seconds":5,"max_extents":1000}})"));
}

TEST_F(Cowctl, ShowsTheProgressThatCowdReports) {
  FakeCowd cowd(socket_);
  cowd.late = std::chrono::milliseconds(1300);
  cowd.answers["detach"] = ok("{}");
  EXPECT_TRUE(run("detach --progress d1").err.ends_with("d1: 1 s\n"));
  cowd.answers["detach"] = R"({"progress":{"done":3,"total":4,"what":"committing d1"}})"
                           "\n" +
                           ok("{}");
  EXPECT_EQ(run("detach --progress d1").err, "committing d1: 75.0 %\n");
  EXPECT_EQ(run("detach d1").err, "");
}

TEST_F(Cowctl, ShowsWhatCowdRefused) {
  FakeCowd cowd(socket_);
  cowd.answers["detach"] =
      R"({"ok":false,"error":{"errno":"EBUSY","message":"d1 is open 2 times.","id":"e-7"}})"
      "\n";
  refused("detach d1", "d1 is open 2 times. [e-7]");
  refused("pause d1", "no such device");
}

TEST_F(Cowctl, StatsEventsVersion) {
  FakeCowd cowd(socket_);
  cowd.answers["stats"] = ok(
      R"({"devices":[{"name":"d1","kernel":{"faults":3},"image":{}}],"process":{"rss_bytes":4096}})");
  cowd.answers["events"] =
      R"({"event":{"number":1,"time":"2026-11-22T00:00:00Z","type":"attached","device":"d1","message":"It is there."}})"
      "\n" +
      ok("{}");
  cowd.answers["version"] = ok(R"({"version":"0.1.0","abi":{"control":1},"pid":7})");
  EXPECT_EQ(run("stats").out,
            "d1:\n    image:\n    kernel:\n        faults: 3\nprocess:\n    rss bytes: 4 KiB (4096 "
            "bytes)\n");
  EXPECT_EQ(run("events --since 0").out, "1  2026-11-22T00:00:00Z  attached  d1  It is there.\n");
  EXPECT_EQ(json::parse(run("events --json").out)["number"], 1);
  EXPECT_EQ(cowd.requests[1], json::parse(R"({"cmd":"events","since":0})"));
  EXPECT_EQ(json::parse(run("version --json").out)["cowd"]["pid"], 7);
}

TEST_F(Cowctl, AsksCowdFirstAndLooksItselfOtherwise) {
  FakeCowd cowd(socket_);
  run("create toy:%d/x 4M -o errors=0,leaks=0");
  EXPECT_EQ(json::parse(run("info --json toy:%d/x").out)["format"], "toy");
  cowd.answers["info"] = ok(R"({"name":"d1","size":1048576,"image":{"granule":4096}})");
  EXPECT_EQ(run("info d1").out,
            "image:\n    granule: 4 KiB (4096 bytes)\nname: d1\nsize: 1 MiB (1048576 bytes)\n");
}

TEST_F(Cowctl, MapsAnAttachedDeviceInSmallerPiecesWhereTheAnswerIsTooLong) {
  FakeCowd cowd(socket_);
  cowd.answers["info"] = ok(R"({"size":2199023255552})");
  cowd.answers["map"] = ok(R"({"map":[]})");
  EXPECT_EQ(run("map --json d1").out, "[]\n");
  ASSERT_EQ(cowd.requests.size(), 3u);
  EXPECT_EQ(cowd.requests[1]["offset"], 0);
  EXPECT_EQ(cowd.requests[2]["offset"], 1ull << 40);

  cowd.answers["map"] = R"({"ok":false,"error":{"errno":"EMSGSIZE","message":"Too long."}})"
                        "\n";
  refused("map d1", "Too long.");
  EXPECT_EQ(cowd.requests.back()["length"], 1 << 20);
}

constexpr const char* kVbdPath = "backend/vbd/7/51712";

TEST_F(Cowctl, AddsADiskOfAGuest) {
  FakeCowd cowd(socket_);
  cowd.answers["vbd-add"] =
      ok(R"({"physical_device":"fd:3","device":"/dev/mapper/web-xvda","name":"web-xvda"})");
  cowd.answers["vbd-remove"] = ok("{}");
  EXPECT_EQ(run(std::string("vbd add ") + kVbdPath).out, "fd:3 /dev/mapper/web-xvda web-xvda\n");
  EXPECT_EQ(run(std::string("vbd add --public --timeout 5 ") + kVbdPath).out,
            "fd:3 /dev/mapper/web-xvda web-xvda\n");
  EXPECT_EQ(json::parse(run(std::string("vbd add --json ") + kVbdPath).out)["name"], "web-xvda");
  const Outcome removed = run(std::string("vbd remove --timeout 5 ") + kVbdPath);
  EXPECT_EQ(removed.status, 0);
  EXPECT_EQ(removed.out, "");
  ASSERT_EQ(cowd.requests.size(), 4u);
  EXPECT_EQ(cowd.requests[0], json::parse(R"({"cmd":"vbd-add","path":"backend/vbd/7/51712"})"));
  EXPECT_EQ(cowd.requests[3], json::parse(R"({"cmd":"vbd-remove","path":"backend/vbd/7/51712"})"));
}

TEST_F(Cowctl, TellsTheGuestNothingButDiskAndId) {
  FakeCowd cowd(socket_);
  const std::string error =
      R"({"ok":false,"error":{"errno":"ENOENT","message":"/dev/vg/x is missing.","id":"e-7")";
  cowd.answers["vbd-add"] = error + "}}\n";
  refused(std::string("vbd add ") + kVbdPath, "/dev/vg/x is missing. [e-7]");
  const std::map<std::string, std::string> names = {
      {"51712", "xvda"},       {"51745", "xvdc1"},     {"268439552", "xvdq"},
      {"268447491", "xvdav3"}, {"268443904", "xvdah"}, {"768", "hda"},
      {"5696", "hdd"},         {"2065", "sdb1"},       {"7", "disk 7"}};
  for (const auto& [devid, name] : names) {
    const Outcome result = run("vbd add --public backend/vbd/7/" + devid);
    EXPECT_EQ(result.status, 1);
    EXPECT_EQ(result.out, "public: The disk " + name + " cannot be attached. [e-7]\n");
    EXPECT_EQ(result.err, "cowctl: /dev/vg/x is missing. [e-7]\n");
  }
  cowd.answers["vbd-add"] = error + R"(,"public":"xvda has no base. [e-7]"}})" + "\n";
  EXPECT_EQ(run(std::string("vbd add --public ") + kVbdPath).out,
            "public: xvda has no base. [e-7]\n");
  EXPECT_EQ(json::parse(run(std::string("vbd add --json --public ") + kVbdPath).out)["public"],
            "xvda has no base. [e-7]");
}

TEST_F(Cowctl, GivesAnIdToAFailureThatCowdNeverSaw) {
  const Outcome result = run(std::string("vbd add --public --timeout 5 ") + kVbdPath);
  EXPECT_EQ(result.status, 1);
  const size_t at = result.err.find("[e-");
  ASSERT_NE(at, std::string::npos) << result.err;
  EXPECT_NE(result.err.find("No cowd listens on " + socket_), std::string::npos);
  EXPECT_EQ(result.out,
            "public: The disk xvda cannot be attached. " + result.err.substr(at, 12) + "\n");
  // And the next cowd has it.
  const auto left = cowd::take_left_events(fs::path(socket_).parent_path());
  ASSERT_EQ(left.size(), 1u);
  EXPECT_EQ("[" + left[0].id + "]", result.err.substr(at, 12));
  EXPECT_NE(left[0].sentence.find("backend/vbd/7/51712: No cowd listens"), std::string::npos);
}

TEST_F(Cowctl, GivesUpInTime) {
  FakeCowd cowd(socket_);
  cowd.answers["vbd-add"] = "say nothing";
  cowd.answers["vbd-remove"] = "say nothing";
  const auto start = std::chrono::steady_clock::now();
  refused(std::string("vbd add --timeout 1 ") + kVbdPath, "no answer within 1 s");
  refused(std::string("vbd remove --timeout 1 ") + kVbdPath, "no answer within 1 s");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(8));
  for (int tries = 0; cowd.goodbyes < 2 && tries < 500; ++tries)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(cowd.goodbyes, 2);
}

TEST_F(Cowctl, AsksACowdAgainThatDiedMeanwhile) {
  FakeCowd cowd(socket_);
  cowd.answers["vbd-add"] = ok(R"({"physical_device":"fd:3","device":"/dev/mapper/a","name":"a"})");
  cowd.hang_ups = 2;
  EXPECT_EQ(run(std::string("vbd add --timeout 20 ") + kVbdPath).out, "fd:3 /dev/mapper/a a\n");
  EXPECT_EQ(cowd.requests.size(), 3u);
  cowd.hang_ups = 1;
  refused(std::string("vbd add ") + kVbdPath, "closed the connection");
}

TEST_F(Cowctl, WaitsForACowdThatIsRestarted) {
  // What a cowd leaves that was killed: its socket, and nobody behind it.
  {
    asio::io_context io;
    stream_protocol::acceptor(io, stream_protocol::endpoint(socket_));
  }
  Outcome result;
  std::thread client([&] { result = run(std::string("vbd add --timeout 20 ") + kVbdPath); });
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  fs::remove(socket_);
  FakeCowd cowd(socket_);
  cowd.answers["vbd-add"] = ok(R"({"physical_device":"fd:3","device":"/dev/mapper/a","name":"a"})");
  client.join();
  EXPECT_EQ(result.out, "fd:3 /dev/mapper/a a\n") << result.err;
}

TEST_F(Cowctl, ListsDisksOfGuestsAndStores) {
  FakeCowd cowd(socket_);
  cowd.answers["vbd-list"] =
      ok(R"({"vbds":[{"path":"backend/vbd/7/51712","domid":7,"devid":51712,"vdev":"xvda",)"
         R"("vm_uuid":"u","domain":"web","spec":"dscow:transient@vg:/dev/vg/golden",)"
         R"("device":"web-xvda","state":"connected","transient":true}]})");
  cowd.answers["stores"] = ok(
      R"({"stores":[{"uuid":"s1","where":"vg","path":"/dev/vg/cowd-1","state":"saved","vm_uuid":)"
      R"("u","vdev":"xvda","size":1073741824,"created_at":"2026-11-23T00:00:00Z"},)"
      R"({"uuid":"s2","where":"vg","path":"/dev/vg/cowd-2","state":"foreign","vm_uuid":"",)"
      R"("problem":""},{"uuid":"s3","where":"vg","path":"/dev/vg/cowd-3","state":"left",)"
      R"("vm_uuid":"","problem":"It is open."}]})");
  cowd.answers["store-delete"] = ok("{}");
  const std::string table =
      "Node                 Domain  Disk  State      Transient  Device    Specification\n"
      "backend/vbd/7/51712  web     xvda  connected  yes        web-xvda  "
      "dscow:transient@vg:/dev/vg/golden\n";
  EXPECT_EQ(run("vbd").out, table);
  EXPECT_EQ(run("vbd list").out, table);
  EXPECT_EQ(json::parse(run("--json vbd").out)["vbds"][0]["domid"], 7);
  EXPECT_EQ(run("stores").out,
            "UUID  State     Size  Disk  Guest  Created               Path\n"
            "s1    saved    1 GiB  xvda  u      2026-11-23T00:00:00Z  /dev/vg/cowd-1\n"
            "s2    foreign      -  -     -      -                     /dev/vg/cowd-2\n"
            "s3    left         -  -     -      -                     /dev/vg/cowd-3\n"
            "s3: It is open.\n");
  EXPECT_EQ(json::parse(run("stores --json").out)["stores"].size(), 3u);
  EXPECT_EQ(run("delete s1").status, 0);
  EXPECT_EQ(cowd.requests.back(), json::parse(R"({"cmd":"store-delete","store":"s1"})"));
  refused("vbd add", "needs PATH");
  refused("vbd remove", "needs PATH");
  refused("vbd list x", "takes no PATH");
  refused("vbd eject x", "eject");
  refused("vbd add x --timeout 0", "--timeout");
  refused("delete", "STORE is required");
}

json check_named(const json& report, const std::string& name) {
  for (const json& check : report["checks"])
    if (check["name"] == name) return check;
  return nullptr;
}

TEST_F(Cowctl, DoctorLooksAtTheHost) {
  const Outcome without = run("doctor --json");
  EXPECT_EQ(without.status, 1);
  const json report = json::parse(without.out);
  EXPECT_EQ(report["ok"], false);
  EXPECT_EQ(check_named(report, "cowd")["result"], "problem");
  for (const char* name : {"kernel module", "udev", "LVM", "iSCSI", "nbd"})
    EXPECT_TRUE(check_named(report, name).is_object()) << name;
  for (const json& check : report["checks"])
    EXPECT_EQ(check["result"] == "ok", check["remedy"] == "") << check;
  EXPECT_NE(run("doctor").out.find("problem  cowd: No cowd listens on " + socket_),
            std::string::npos);

  FakeCowd cowd(socket_);
  cowd.answers["version"] = ok(R"({"version":"0.0.1"})");
  EXPECT_NE(run("doctor").out.find("cowd 0.0.1 runs, but cowctl is"), std::string::npos);
}

// cowd-nbd is looked for beside cowctl, and nbd-client nowhere.
TEST_F(Cowctl, DoctorAsksForOurNbdClient) {
  fs::copy(program_, dir_ / "cowctl");
  program_ = dir_ / "cowctl";
  const json without = check_named(json::parse(run("doctor --json").out), "nbd");
  const std::string sentence = without["message"];
  if (!fs::exists(COWD_SBIN_DIR "/cowd-nbd")) {
    EXPECT_EQ(without["result"], "problem");
    EXPECT_NE(sentence.find("cowd-nbd is neither"), std::string::npos) << sentence;
  }
  std::ofstream(dir_ / "cowd-nbd") << "#!/bin/sh\n";
  fs::permissions(dir_ / "cowd-nbd", fs::perms::owner_all);
  const json with = check_named(json::parse(run("doctor --json").out), "nbd");
  EXPECT_NE(with["result"], "problem") << with;
  EXPECT_EQ(with.dump().find("nbd-client"), std::string::npos) << with;
}

TEST(HostSettings, HowLongGuestsWaitForAServer) {
  using cowctl::backing_loss_timeout;
  EXPECT_EQ(backing_loss_timeout("", "f"), std::nullopt);
  EXPECT_EQ(backing_loss_timeout("[devices]\nbacking_loss_timeout = \"2m\"\n", "f"), std::nullopt);
  EXPECT_EQ(backing_loss_timeout("[devices]\non_backing_loss = \"error\"\n", "f"), "60s");
  EXPECT_EQ(backing_loss_timeout(
                "[devices]\non_backing_loss = \"error\"\nbacking_loss_timeout = \"2m\"\n", "f"),
            "2m");
  EXPECT_EQ(backing_loss_timeout("devices = 1\n", "f"), std::nullopt);
  EXPECT_THROW(backing_loss_timeout("[devices\n", "f"), cowd::Error);
}

TEST(HostSettings, AreTheLastOfTheirKey) {
  using cowctl::setting;
  const std::string text =
      "# node.x = 1\nnode.x = 5\n  node.x=120 \nnode.xy = "
      "7\nSAVE=\"/var/lib\"\nEMPTY=\nONE='a=b'\n";
  EXPECT_EQ(setting(text, "node.x"), "120");
  EXPECT_EQ(setting(text, "SAVE"), "/var/lib");
  EXPECT_EQ(setting(text, "EMPTY"), "");
  EXPECT_EQ(setting(text, "ONE"), "a=b");
  EXPECT_EQ(setting(text, "node"), std::nullopt);
}

using Strings = std::vector<std::string>;

TEST(HostSettings, StringsOfLvm) {
  using cowctl::lvm_strings;
  const std::string text =
      "devices {\n\tfilter=[\"a|.*|\"]\n\tglobal_filter=[\"r|^/dev/drbd\\\\d|\", \"a|.*|\"]\n"
      "\tone=\"r|x\\\"y|\"\n\tnone=[]\n}\n";
  EXPECT_EQ(lvm_strings(text, "filter"), Strings{"a|.*|"});
  EXPECT_EQ(lvm_strings(text, "global_filter"), (Strings{"r|^/dev/drbd\\d|", "a|.*|"}));
  EXPECT_EQ(lvm_strings(text, "one"), Strings{"r|x\"y|"});
  EXPECT_EQ(lvm_strings(text, "none"), Strings{});
  EXPECT_EQ(lvm_strings(text, "absent"), Strings{});
}

TEST(HostSettings, LvmFilters) {
  using cowctl::lvm_filter_line;
  using cowctl::lvm_reads;
  const Strings ours = {"/dev/dm-9", "/dev/mapper/web1", "/dev/dmu/web1"};
  EXPECT_TRUE(lvm_reads({}, ours));
  EXPECT_TRUE(lvm_reads({"a|.*|"}, ours));
  EXPECT_FALSE(lvm_reads({"a|^/dev/sd|", "r|.*|"}, ours));
  EXPECT_FALSE(lvm_reads({"r{^/dev/dmu/}"}, ours));
  EXPECT_FALSE(lvm_reads({"r/mapper.web/"}, ours));
  // One name that is accepted is enough.
  EXPECT_TRUE(lvm_reads({"r|^/dev/dmu/|", "a|.*|"}, ours));
  EXPECT_TRUE(lvm_reads({"r|^/dev/dmu/|", "a|^/dev/mapper/|", "r|.*|"}, ours));
  EXPECT_TRUE(lvm_reads({"nonsense", "r|^/dev/(|"}, ours));

  EXPECT_EQ(lvm_filter_line({"a|.*|"}, ours), "global_filter = [ \"r|^/dev/dmu/|\" ]");
  EXPECT_EQ(lvm_filter_line({"r|^/dev/drbd\\d|", "a|.*|"}, ours),
            "global_filter = [ \"r|^/dev/dmu/|\", \"r|^/dev/drbd\\\\d|\" ]");
  EXPECT_EQ(lvm_filter_line({"a|^/dev/mapper/|", "r|.*|"}, ours), std::nullopt);
}

TEST(Output, Table) {
  std::ostringstream out;
  cowctl::Table table({{"Name"}, {"Size", cowctl::Table::Align::right}, {"Note"}});
  table.add({"grün", "7", ""});
  table.add({"x", "1000", "a b"});
  table.print(out);
  EXPECT_EQ(out.str(), "Name  Size  Note\ngrün     7\nx     1000  a b\n");
}

TEST(Output, Objects) {
  std::ostringstream out;
  cowctl::print_object(out, json::parse(R"({"a-b":true,"list":[1,"x"],"none":null,
    "destinations":[{"dev":"253:0"},{"dev":"253:1"}],"virtual-size":1536})"));
  EXPECT_EQ(out.str(),
            "a b: yes\ndestinations:\n    dev: 253:0\ndestinations:\n    dev: 253:1\n"
            "list: 1, x\nnone: -\nvirtual size: 1.5 KiB (1536 bytes)\n");
}

TEST(Output, Progress) {
  using std::chrono::milliseconds;
  EXPECT_EQ(cowctl::progress_text("checking x", 1, 8, milliseconds(1500)), "checking x: 12.5 %");
  EXPECT_EQ(cowctl::progress_text("checking x", 9, 8, milliseconds(1500)), "checking x: 100.0 %");
  EXPECT_EQ(cowctl::progress_text("attaching x", 0, 0, milliseconds(3900)), "attaching x: 3 s");
}

}  // namespace
