// SPDX-License-Identifier: GPL-2.0-or-later
// The control server over a socket pair, with a handler that a test makes up.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/connect_pair.hpp>
#include <boost/asio/write.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/control_client.hh"
#include "cowd/core/error.hh"
#include "cowd/core/run.hh"
#include "cowd/daemon/commands.hh"
#include "cowd/daemon/control_server.hh"
#include "cowd/daemon/signal_event.hh"

namespace cowd {
namespace {

namespace asio = boost::asio;
using nlohmann::json;

// What a command that hangs waits for, and what it finds then.
struct Hanging {
  explicit Hanging(asio::any_io_executor executor) : released(std::move(executor)) {}
  SignalEvent released;
  bool held = true;
  bool gone = false;
  int told = 0;
};
std::shared_ptr<Hanging> hanging;

Task<json> hang(std::shared_ptr<ControlServer::Caller> caller) {
  const auto own = hanging;
  while (own->held) co_await own->released.wait();
  const bool gone = caller->gone();
  own->gone = gone;
  json line = {{"progress", {{"done", 1}}}};
  try {
    co_await caller->tell(line);
  } catch (const Error& error) {
    own->told = error.code();
  }
  if (gone) throw Error(ECANCELED, "It was given up.");
  co_return json::object();
}

Task<json> fake(const std::string& command, JsonArguments& arguments,
                std::shared_ptr<ControlServer::Caller> caller) {
  if (command == "hang") co_return co_await hang(caller);
  if (command == "fail") throw Error(EBUSY, "The disk is busy.");
  if (command == "defect") throw std::runtime_error("a defect");
  if (command == "huge") {
    json result;
    result["text"] = std::string(2 << 20, 'x');
    co_return result;
  }
  if (command == "long") {
    json line;
    line["progress"]["done"] = 1;
    co_await caller->tell(line);
  }
  json result;
  result["echo"] = arguments.string("text").value_or("");
  arguments.done();
  co_return result;
}

class ControlTest : public testing::Test {
 protected:
  ControlTest() : server(io, 2, events, fake) {}

  std::unique_ptr<JsonLines> connect() {
    JsonLines::Socket ours(io), theirs(io);
    asio::local::connect_pair(ours, theirs);
    asio::co_spawn(io, server.serve(std::move(theirs)), [this](std::exception_ptr error) {
      EXPECT_FALSE(error);
      ++served;
    });
    return std::make_unique<JsonLines>(std::move(ours));
  }
  json ask(JsonLines& lines, const json& request) {
    run_to_end(io, lines.write(request));
    return *run_to_end(io, lines.read());
  }
  void settle() {
    io.restart();
    while (io.poll() > 0) io.restart();
  }

  asio::io_context io;
  EventRing events;
  ControlServer server;
  int served = 0;
};

TEST_F(ControlTest, AnswersOneRequestAfterTheOther) {
  auto client = connect();
  for (const char* text : {"a", "b"}) {
    json request = {{"cmd", "say"}, {"text", text}};
    json answer = ask(*client, request);
    EXPECT_EQ(answer["ok"], true);
    EXPECT_EQ(answer["result"]["echo"], text);
  }
}

TEST_F(ControlTest, ProgressComesBeforeTheAnswer) {
  auto client = connect();
  json request = {{"cmd", "long"}};
  EXPECT_EQ(ask(*client, request)["progress"]["done"], 1);
  EXPECT_EQ((*run_to_end(io, client->read()))["ok"], true);
}

TEST_F(ControlTest, AFailureHasOneIdInAnswerAndEvent) {
  auto client = connect();
  json request = {{"cmd", "fail"}, {"device", "disk"}};
  json error = ask(*client, request)["error"];
  EXPECT_EQ(error["errno"], "EBUSY");
  EXPECT_EQ(error["message"], "The disk is busy.");
  auto event = events.after(0).at(0);
  EXPECT_EQ(event.type, "refused");
  EXPECT_EQ(event.device, "disk");
  EXPECT_EQ(event.id, error["id"]);
  EXPECT_EQ(event.id.substr(0, 2), "e-");
}

TEST_F(ControlTest, WrongRequestsAreRefusedByNameAndTheConnectionStays) {
  auto client = connect();
  struct Case {
    json request;
    const char* words;
  };
  std::vector<Case> cases{{{{"cmd", 4}}, "cmd"},
                          {{{"what", "x"}}, "cmd"},
                          {{{"cmd", "say"}, {"colour", "red"}}, "colour"},
                          {{{"cmd", "defect"}}, "a defect"},
                          {{{"cmd", "events"}, {"since", "x"}}, "since"}};
  for (const Case& each : cases) {
    json answer = ask(*client, each.request);
    EXPECT_EQ(answer["ok"], false);
    EXPECT_NE(answer["error"]["message"].get<std::string>().find(each.words), std::string::npos)
        << answer;
  }
}

TEST_F(ControlTest, AnAnswerThatDoesNotFitALineSaysSo) {
  auto client = connect();
  json request = {{"cmd", "huge"}};
  EXPECT_EQ(ask(*client, request)["error"]["errno"], "EMSGSIZE");
}

TEST_F(ControlTest, WhatIsNoJsonEndsTheConnection) {
  auto client = connect();
  asio::write(client->socket(), asio::buffer(std::string("hello\n")));
  settle();
  EXPECT_EQ(served, 1);
}

TEST_F(ControlTest, ALineWithoutEndEndsTheConnection) {
  auto client = connect();
  std::string block(64 << 10, 'x');
  boost::system::error_code error;
  for (int i = 0; i < 40 && !error; ++i) {
    client->socket().non_blocking(true);
    client->socket().write_some(asio::buffer(block), error);
    if (error == asio::error::would_block) error = {};
    settle();
  }
  EXPECT_EQ(served, 1);
}

TEST_F(ControlTest, NoMoreClientsThanAllowed) {
  auto first = connect(), second = connect(), third = connect();
  json answer = *run_to_end(io, third->read());
  EXPECT_EQ(answer["error"]["errno"], "EBUSY");
  first.reset();
  settle();
  auto fourth = connect();
  json request = {{"cmd", "say"}};
  EXPECT_EQ(ask(*fourth, request)["ok"], true);
}

TEST_F(ControlTest, AClientThatHangsUpGivesBackItsPlaceAlsoWhereItsRequestHangs) {
  hanging = std::make_shared<Hanging>(io.get_executor());
  json hang = {{"cmd", "hang"}};
  for (int i = 0; i < 3; ++i) {  // one more than may be there at once
    auto client = connect();
    run_to_end(io, client->write(hang));
    settle();
    EXPECT_EQ(served, i);
    client.reset();
    settle();
    EXPECT_EQ(served, i + 1);
  }
  auto other = connect();
  json say = {{"cmd", "say"}};
  EXPECT_EQ(ask(*other, say)["ok"], true);
  EXPECT_TRUE(events.after(0).empty());
  hanging->held = false;
  hanging->released.notify();
  settle();
  EXPECT_TRUE(hanging->gone);
  EXPECT_EQ(hanging->told, EPIPE);
  EXPECT_EQ(events.after(0).size(), 3U);  // how it ended is told all the same
  EXPECT_EQ(events.after(0).at(0).message, "It was given up.");
}

TEST_F(ControlTest, WhoAsksAgainAndAgainForWhatHangsIsRefused) {
  hanging = std::make_shared<Hanging>(io.get_executor());
  json hang = {{"cmd", "hang"}, {"device", "disk"}};
  for (int i = 0; i < 8; ++i) {
    auto client = connect();
    run_to_end(io, client->write(hang));
    settle();
    client.reset();
    settle();
  }
  auto client = connect();
  const json refused = ask(*client, hang);
  EXPECT_EQ(refused["error"]["errno"], "EBUSY") << refused;
  json other = {{"cmd", "hang"}, {"device", "other"}};
  run_to_end(io, client->write(other));
  hanging->held = false;
  hanging->released.notify();
  EXPECT_EQ((*run_to_end(io, client->read()))["progress"]["done"], 1);
  EXPECT_EQ((*run_to_end(io, client->read()))["ok"], true);
  EXPECT_EQ(ask(*client, hang)["progress"]["done"], 1);
  EXPECT_EQ((*run_to_end(io, client->read()))["ok"], true);
}

TEST_F(ControlTest, ARequestThatIsSentEarlyIsNoHangUp) {
  hanging = std::make_shared<Hanging>(io.get_executor());
  auto client = connect();
  json hang = {{"cmd", "hang"}};
  json say = {{"cmd", "say"}, {"text", "early"}};
  run_to_end(io, client->write(hang));
  settle();
  run_to_end(io, client->write(say));
  settle();
  EXPECT_EQ(served, 0);
  hanging->held = false;
  hanging->released.notify();
  EXPECT_EQ((*run_to_end(io, client->read()))["progress"]["done"], 1);
  EXPECT_EQ((*run_to_end(io, client->read()))["ok"], true);
  EXPECT_FALSE(hanging->gone);
  EXPECT_EQ((*run_to_end(io, client->read()))["result"]["echo"], "early");
}

TEST_F(ControlTest, EventsAreShownAndFollowed) {
  events.add("started", "", "One.");
  events.add("attached", "disk", "Two.");
  auto client = connect();
  json request = {{"cmd", "events"}, {"since", 1}};
  EXPECT_EQ(ask(*client, request)["event"]["message"], "Two.");
  EXPECT_EQ((*run_to_end(io, client->read()))["ok"], true);

  request["follow"] = true;
  EXPECT_EQ(ask(*client, request)["event"]["number"], 2);
  events.add("detached", "disk", "Three.");
  EXPECT_EQ((*run_to_end(io, client->read()))["event"]["message"], "Three.");
  client.reset();
  settle();
  EXPECT_EQ(served, 1);
}

TEST_F(ControlTest, ListensOnASocketOnlyWeMayUse) {
  std::string path = testing::TempDir() + "control.sock";
  server.listen(path);
  struct stat st;
  ASSERT_EQ(stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0600U);
  auto call = [](std::string socket) -> Task<json> {
    auto client = co_await ControlClient::connect(socket);
    json request = {{"cmd", "say"}, {"text", "hello"}};
    co_return co_await client.call(request);
  };
  EXPECT_EQ(run_to_end(io, call(path))["echo"], "hello");
  server.stop();
  settle();
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(ControlTest, AnswersWhoCameBeforeIt) {
  std::string path = testing::TempDir() + "queue.sock";
  unlink(path.c_str());
  asio::local::stream_protocol::acceptor listener(io, {path});
  auto connect_to = [](std::string socket) -> Task<std::optional<ControlClient>> {
    co_return co_await ControlClient::connect(socket);
  };
  auto client = run_to_end(io, connect_to(path));
  server.listen_on(dup(listener.native_handle()));
  json request = {{"cmd", "say"}, {"text", "hello"}};
  EXPECT_EQ(run_to_end(io, client->call(request))["echo"], "hello");
  server.stop();
  client.reset();
  settle();
  // Whose it is decides when it goes.
  EXPECT_TRUE(std::filesystem::exists(path));
  unlink(path.c_str());
}

TEST(AttachRequest, TakesItsArgumentsAndNoOthers) {
  json object = {{"cmd", "attach"},
                 {"spec", "raw:/dev/x"},
                 {"durability", "always"},
                 {"features", {{"no_daemon", "fail"}, {"no_daemon_seconds", 5}}}};
  JsonArguments arguments(object, "attach");
  arguments.need_string("cmd");
  AttachRequest request = attach_request(arguments);
  EXPECT_EQ(request.spec, "raw:/dev/x");
  EXPECT_EQ(request.durability, Durability::always);
  EXPECT_EQ(request.queue_if_no_daemon, false);
  EXPECT_EQ(request.no_daemon_seconds, 5U);

  for (const json& features :
       {json{{"no_daemon", "sleep"}}, json{{"max_extents", 1ULL << 40}}, json{{"speed", 1}}}) {
    object["features"] = features;
    JsonArguments wrong(object, "attach");
    wrong.need_string("cmd");
    EXPECT_THROW(attach_request(wrong), Error) << features;
  }
}

}  // namespace
}  // namespace cowd
