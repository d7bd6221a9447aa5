// SPDX-License-Identifier: GPL-2.0-or-later
// The control client against a server in this process that answers by script.
#include <utility>

#include <filesystem>
#include <string>
#include <vector>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "cowd/core/control_client.hh"
#include "cowd/core/run.hh"

namespace {

using namespace cowd;
namespace asio = boost::asio;
using asio::local::stream_protocol;
using nlohmann::json;

class ControlClientTest : public testing::Test {
 protected:
  ControlClientTest()
      : path_(std::filesystem::temp_directory_path() / ("control." + std::to_string(getpid()))),
        acceptor_(io_, stream_protocol::endpoint(path_)) {}
  ~ControlClientTest() override { std::filesystem::remove(path_); }

  // Reads one request, sends `answer` as it is and closes.
  Task<> serve(std::string answer) {
    JsonLines lines(co_await acceptor_.async_accept(asio::use_awaitable));
    request_ = (co_await lines.read()).value();
    co_await asio::async_write(lines.socket(), asio::buffer(answer), asio::use_awaitable);
  }

  Task<json> ask(json request) {
    ControlClient client = co_await ControlClient::connect(path_);
    co_return co_await client.call(request, [this](const json& line) { lines_.push_back(line); });
  }

  json exchange(const std::string& answer) {
    asio::co_spawn(io_, serve(answer), asio::detached);
    return run_to_end(io_, ask({{"cmd", "list"}}));
  }

  int refusal(const std::string& answer, std::string* sentence = nullptr) {
    try {
      exchange(answer);
    } catch (const Error& e) {
      if (sentence) *sentence = e.what();
      return e.code();
    }
    return 0;
  }

  asio::io_context io_;
  std::string path_;
  stream_protocol::acceptor acceptor_;
  json request_;
  std::vector<json> lines_;
};

TEST_F(ControlClientTest, GivesTheResult) {
  const json result = exchange("{\"ok\": true, \"result\": {\"devices\": []}}\n");
  EXPECT_EQ(request_["cmd"], "list");
  EXPECT_EQ(result.dump(), "{\"devices\":[]}");
  EXPECT_TRUE(lines_.empty());
}

TEST_F(ControlClientTest, GivesProgressAndEventsAsTheyCome) {
  exchange(
      "{\"progress\": {\"done\": 1}}\n{\"event\": {\"number\": 4}}\n{\"ok\": true, \"result\": "
      "{}}\n");
  ASSERT_EQ(lines_.size(), 2u);
  EXPECT_EQ(lines_[0]["progress"]["done"], 1);
  EXPECT_EQ(lines_[1]["event"]["number"], 4);
}

TEST_F(ControlClientTest, ThrowsWhatWasRefused) {
  std::string sentence;
  EXPECT_EQ(refusal("{\"ok\":false,\"error\":{\"errno\":\"EBUSY\",\"message\":\"d1 is in "
                    "use.\",\"id\":\"e-5\"}}\n",
                    &sentence),
            EBUSY);
  EXPECT_EQ(sentence, "d1 is in use. [e-5]");
}

TEST_F(ControlClientTest, ThrowsWhenTheServerGoesAway) {
  EXPECT_EQ(refusal(""), EPIPE);
  EXPECT_EQ(refusal("{\"ok\": tr"), EPROTO);
}

TEST_F(ControlClientTest, ThrowsOnWhatIsNotTheProtocol) {
  EXPECT_EQ(refusal("hello\n"), EPROTO);
  EXPECT_EQ(refusal("[1]\n"), EPROTO);
  EXPECT_EQ(refusal(std::string(JsonLines::kMaxLine + 1, ' ') + "\n"), EMSGSIZE);
}

TEST_F(ControlClientTest, SaysThatNobodyListens) {
  std::filesystem::remove(path_);
  try {
    run_to_end(io_, ask({{"cmd", "list"}}));
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ENOENT);
    EXPECT_NE(std::string(e.what()).find(path_), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("--socket"), std::string::npos);
  }
}

}  // namespace
