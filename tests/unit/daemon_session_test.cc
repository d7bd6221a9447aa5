// SPDX-License-Identifier: GPL-2.0-or-later
// A session between a channel that a test plays and an image that a test holds up.
#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <deque>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/error.hh"
#include "cowd/daemon/session.hh"
#include "libdmu/dmu.h"

namespace cowd {
namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;

// What both sides of the fake share with the test.
struct Wire {
  explicit Wire(asio::any_io_executor executor) : readable(std::move(executor)) {}
  std::deque<dmu_msg> to_daemon;
  std::vector<dmu_msg> from_daemon;
  std::vector<size_t> writes;  // messages in each write
  std::function<int(const dmu_msg&)> verdict = [](const dmu_msg&) { return 0; };
  bool gone = false;
  bool cancelled = false;
  SignalEvent readable;

  void say(dmu_msg msg) {
    to_daemon.push_back(msg);
    readable.notify();
  }
};

class FakeChannel : public Channel {
 public:
  explicit FakeChannel(Wire& wire) : wire_(wire) {}
  Task<> readable() override {
    while (wire_.to_daemon.empty() && !wire_.gone && !wire_.cancelled)
      co_await wire_.readable.wait();
  }
  void cancel() override {
    wire_.cancelled = true;
    wire_.readable.notify();
  }
  size_t receive(std::span<dmu_msg> messages) override {
    if (wire_.gone) throw Error(ENODEV, "The device is gone.");
    size_t count = 0;
    while (count < messages.size() && !wire_.to_daemon.empty()) {
      messages[count++] = wire_.to_daemon.front();
      wire_.to_daemon.pop_front();
    }
    return count;
  }
  void send(std::span<const dmu_msg> messages, std::span<int> results) override {
    if (wire_.gone) throw Error(ENODEV, "The device is gone.");
    wire_.writes.push_back(messages.size());
    for (size_t i = 0; i < messages.size(); ++i) {
      results[i] = -wire_.verdict(messages[i]);
      wire_.from_daemon.push_back(messages[i]);
    }
  }
  uint64_t generation() const override { return 1; }

 private:
  Wire& wire_;
};

class FakeImage : public Image {
 public:
  explicit FakeImage(asio::any_io_executor executor) : gate(std::move(executor)) {}
  uint64_t sectors() const override { return 1 << 20; }
  std::vector<Destination> destinations() const override { return {}; }
  uint32_t discard_granularity() const override { return 0; }
  std::vector<Answer> initial() const override {
    if (!has_initial) return {};
    return {extent({0, 64})};
  }
  Task<std::vector<Answer>> resolve(Range range, Access) override {
    if (range.sector == slow_sector)
      while (held) co_await gate.wait();
    if (range.sector == bad_sector) throw Error(ENODATA, "This block is lost.");
    if (range.sector == stale_sector) throw Error(ESTALE, "This overlay is unknown.");
    co_return std::vector<Answer>{extent(range)};
  }
  void promoted(const Promotion& promotion) override { told.push_back(promotion); }
  Task<> commit(uint64_t seq, bool data_flushed) override {
    commits.push_back({seq, data_flushed});
    if (invalidate) co_await invalidate({0, 8});
    while (held) co_await gate.wait();
    if (broken) throw Error(EIO, "The disk is broken.");
    if (full) throw Error(ENOSPC, "The disk is full.");
  }
  Task<std::vector<Answer>> discard(Range range) override {
    if (invalidate) co_await invalidate(range);
    co_return std::vector<Answer>{};
  }
  Task<std::vector<Answer>> zero(Range range) override {
    co_return std::vector<Answer>{extent(range)};
  }
  Task<std::vector<MapEntry>> map(Range) override { co_return std::vector<MapEntry>{}; }
  Task<> preserve() override { co_return; }
  Task<> close() override { co_return; }
  nlohmann::json stats() const override { return {}; }
  bool forgets_on_reattach() const override { return forgets; }

  static Extent extent(Range range) {
    Extent extent;
    extent.range = range;
    extent.read = extent.write = Side::at(0, range.sector);
    return extent;
  }
  void release() {
    held = false;
    gate.notify();
  }

  SignalEvent gate;
  bool held = false, broken = false, full = false, has_initial = false, forgets = false;
  std::function<Task<>(Range)> invalidate;  // on the way of a discard or a commit
  uint64_t slow_sector = ~0ULL, bad_sector = ~0ULL, stale_sector = ~0ULL;
  std::vector<Promotion> told;
  std::vector<std::pair<uint64_t, bool>> commits;
};

class SessionTest : public testing::Test, public SessionObserver {
 protected:
  SessionTest() : wire(io.get_executor()), image(io.get_executor()) {
    settings.commit_interval = 20ms;
    settings.no_space_retry = 20ms;
  }
  void replayed() override { ++replays; }
  void event(const std::string& type, const std::string& sentence, const std::string& id) override {
    EXPECT_EQ(id.size(), type == "no-space-over" ? 0U : 10U);
    EXPECT_FALSE(sentence.empty());
    events.push_back(type);
    sentences.push_back(sentence);
  }
  void no_space() override { ++looks; }

  void start(bool replay_done = true) {
    session = std::make_shared<Session>(io.get_executor(), std::make_unique<FakeChannel>(wire),
                                        image, settings, *this, "disk");
    asio::co_spawn(io, session->run(), [this](std::exception_ptr error, Session::End how) {
      EXPECT_FALSE(error);
      end = how;
    });
    if (replay_done) wire.say(dmu_msg_make(DMU_MSG_REPLAY_DONE, 0));
    settle();
  }
  // Runs all that can run without time going by.
  void settle() {
    io.restart();
    while (io.poll() > 0) io.restart();
  }
  // Until `done` is true; a test that waits in vain fails.
  void until(const std::function<bool()>& done) {
    auto give_up = std::chrono::steady_clock::now() + 20s;
    while (!done()) {
      ASSERT_LT(std::chrono::steady_clock::now(), give_up);
      io.restart();
      io.run_one_for(100ms);
    }
  }
  void spawn(Task<> task, std::optional<bool>& well) {
    asio::co_spawn(io, std::move(task), [&well](std::exception_ptr error) { well = !error; });
  }

  dmu_msg fault(uint64_t id, uint64_t sector, uint32_t flags = DMU_F_READ) {
    dmu_msg msg = dmu_msg_make(DMU_MSG_FAULT, id);
    msg.sector = sector;
    msg.len = 8;
    msg.flags = flags;
    msg.gen = 1;
    return msg;
  }
  dmu_msg with_seq(uint32_t type, uint64_t id, uint64_t seq) {
    dmu_msg msg = dmu_msg_make(type, id);
    msg.seq = seq;
    msg.len = 8;
    return msg;
  }
  std::vector<dmu_msg> sent(uint32_t type) {
    std::vector<dmu_msg> found;
    for (const dmu_msg& msg : wire.from_daemon)
      if (msg.type == type) found.push_back(msg);
    return found;
  }
  std::vector<uint64_t> ids(uint32_t type) {
    std::vector<uint64_t> list;
    for (const dmu_msg& msg : sent(type)) list.push_back(msg.id);
    return list;
  }

  asio::io_context io;
  Wire wire;
  FakeImage image;
  SessionSettings settings;
  std::shared_ptr<Session> session;
  std::optional<Session::End> end;
  int replays = 0;
  std::vector<std::string> events;
  std::vector<std::string> sentences;
  int looks = 0;
};

using Ids = std::vector<uint64_t>;

TEST_F(SessionTest, ResolvesNothingBeforeTheReplayIsDone) {
  image.has_initial = true;
  start(false);
  wire.say(with_seq(DMU_MSG_PROMOTED, 0, 4));
  wire.say(fault(1, 8));
  wire.say(with_seq(DMU_MSG_FLUSH, 2, 4));
  settle();
  EXPECT_EQ(image.told.size(), 1U);
  EXPECT_TRUE(image.commits.empty());
  EXPECT_TRUE(wire.from_daemon.empty());
  dmu_msg done = dmu_msg_make(DMU_MSG_REPLAY_DONE, 0);
  done.gen = 6;
  wire.say(done);
  settle();
  EXPECT_EQ(replays, 1);
  ASSERT_EQ(ids(DMU_MSG_MAP), (Ids{0, 1}));
  EXPECT_EQ(sent(DMU_MSG_MAP)[0].gen, 6U);
  EXPECT_EQ(ids(DMU_MSG_ACK), Ids{2});
}

// What an earlier daemon gave and nobody used: this one may give the same place to another.
TEST_F(SessionTest, ForAnImageThatHandsOutSpaceTheKernelForgetsFirst) {
  image.forgets = image.has_initial = true;
  start();
  wire.say(fault(1, 8));
  wire.say(with_seq(DMU_MSG_FLUSH, 2, 4));
  settle();
  ASSERT_EQ(sent(DMU_MSG_INVALIDATE).size(), 1U);
  EXPECT_EQ(sent(DMU_MSG_INVALIDATE)[0].sector, 0U);
  EXPECT_EQ(sent(DMU_MSG_INVALIDATE)[0].len, image.sectors());
  EXPECT_EQ(replays, 0);
  EXPECT_TRUE(sent(DMU_MSG_MAP).empty());
  // What was promoted meanwhile is told before the drain has ended.
  wire.say(with_seq(DMU_MSG_PROMOTED, 0, 4));
  wire.say(dmu_msg_make(DMU_MSG_INVALIDATED, sent(DMU_MSG_INVALIDATE)[0].id));
  settle();
  EXPECT_EQ(image.told.size(), 1U);
  EXPECT_EQ(replays, 1);
  EXPECT_EQ(ids(DMU_MSG_MAP), (Ids{0, 1}));
  EXPECT_EQ(ids(DMU_MSG_ACK), Ids{2});
}

TEST_F(SessionTest, AnswersManyFaultsInOneWrite) {
  start();
  wire.writes.clear();
  for (uint64_t id = 1; id <= 50; ++id) wire.to_daemon.push_back(fault(id, id * 8));
  wire.readable.notify();
  settle();
  EXPECT_EQ(ids(DMU_MSG_MAP).size(), 50U);
  EXPECT_EQ(wire.writes, std::vector<size_t>{50});
}

TEST_F(SessionTest, ASlowFaultHoldsNoOther) {
  image.slow_sector = 8;
  image.held = true;
  start();
  wire.say(fault(1, 8));
  wire.say(fault(2, 16));
  settle();
  EXPECT_EQ(ids(DMU_MSG_MAP), Ids{2});
  image.release();
  settle();
  EXPECT_EQ(ids(DMU_MSG_MAP), (Ids{2, 1}));
}

TEST_F(SessionTest, NoMoreRequestsThanAllowedRunAtOnce) {
  settings.max_requests = 2;
  image.slow_sector = 8;
  image.held = true;
  start();
  for (uint64_t id = 1; id <= 4; ++id) wire.say(fault(id, 8));
  settle();
  EXPECT_EQ(session->stats()["requests_running"], 2);
  EXPECT_EQ(session->stats()["requests_waiting"], 2);
  image.release();
  settle();
  EXPECT_EQ(ids(DMU_MSG_MAP).size(), 4U);
}

TEST_F(SessionTest, AnErrorOfTheImageFailsTheFaultWithItsErrno) {
  image.bad_sector = 8;
  start();
  wire.say(fault(1, 8));
  settle();
  ASSERT_EQ(ids(DMU_MSG_FAIL), Ids{1});
  EXPECT_EQ(sent(DMU_MSG_FAIL)[0].error, ENODATA);
  EXPECT_EQ(events, std::vector<std::string>{"io-error"});
}

TEST_F(SessionTest, TheLogIsNotFloodedByErrors) {
  image.bad_sector = 8;
  start();
  for (uint64_t id = 1; id <= 100; ++id) wire.say(fault(id, 8));
  settle();
  EXPECT_EQ(ids(DMU_MSG_FAIL).size(), 100U);
  EXPECT_EQ(events.size(), 5U);
}

TEST_F(SessionTest, OneCommitAcksAllFlushesItCovers) {
  image.held = true;
  start();
  wire.say(with_seq(DMU_MSG_PROMOTED, 0, 1));
  wire.say(with_seq(DMU_MSG_FLUSH, 1, 1));
  settle();
  for (uint64_t id = 2; id <= 9; ++id) {
    wire.say(with_seq(DMU_MSG_PROMOTED, 0, id));
    wire.say(with_seq(DMU_MSG_FLUSH, id, id));
  }
  settle();
  EXPECT_EQ(image.commits.size(), 1U);
  EXPECT_TRUE(sent(DMU_MSG_ACK).empty());
  image.release();
  settle();
  EXPECT_EQ(ids(DMU_MSG_ACK), (Ids{1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(image.commits, (std::vector<std::pair<uint64_t, bool>>{{1, true}, {9, true}}));
}

TEST_F(SessionTest, ATimerCommitsWhatNobodyAskedFor) {
  start();
  wire.say(with_seq(DMU_MSG_PROMOTED, 0, 3));
  settle();
  EXPECT_TRUE(image.commits.empty());
  until([&] { return !sent(DMU_MSG_COMMITTED).empty(); });
  EXPECT_EQ(sent(DMU_MSG_COMMITTED)[0].seq, 3U);
  EXPECT_EQ(image.commits, (std::vector<std::pair<uint64_t, bool>>{{3, false}}));
}

TEST_F(SessionTest, AFailedCommitFailsItsFlushAndIsTriedAgain) {
  // Longer than settle() takes on a busy host: one failure is to be seen.
  settings.commit_interval = 1s;
  image.broken = true;
  start();
  wire.say(with_seq(DMU_MSG_PROMOTED, 0, 3));
  wire.say(with_seq(DMU_MSG_FLUSH, 1, 3));
  settle();
  ASSERT_EQ(ids(DMU_MSG_FAIL), Ids{1});
  EXPECT_EQ(sent(DMU_MSG_FAIL)[0].error, EIO);
  EXPECT_EQ(events, std::vector<std::string>{"commit-failed"});
  image.broken = false;
  until([&] { return !sent(DMU_MSG_COMMITTED).empty(); });
  EXPECT_EQ(sent(DMU_MSG_COMMITTED)[0].seq, 3U);
}

TEST_F(SessionTest, LateAnswersAreNormal) {
  wire.verdict = [](const dmu_msg& msg) { return msg.id == 1 ? ENOENT : 0; };
  start();
  wire.say(fault(1, 8));
  settle();
  EXPECT_TRUE(events.empty());
  EXPECT_TRUE(sent(DMU_MSG_FAIL).empty());
  EXPECT_EQ(session->stats()["late_answers"], 1);
}

TEST_F(SessionTest, BitsOfAnOverlayThatWasTakenBackAreNoError) {
  wire.verdict = [](const dmu_msg& msg) { return msg.id == 1 ? ENOENT : 0; };
  image.stale_sector = 8;
  start();
  dmu_msg taken_back = fault(1, 8), taken_back_later = fault(2, 16);
  taken_back.gen = 1;
  taken_back_later.gen = 2;
  wire.say(taken_back);
  wire.say(taken_back_later);
  settle();
  EXPECT_TRUE(events.empty());
  EXPECT_EQ(session->stats()["late_answers"], 1);
  taken_back.id = 3;
  taken_back.gen = 2;  // nothing was taken back since: a defect
  wire.say(taken_back);
  settle();
  EXPECT_EQ(ids(DMU_MSG_FAIL), (Ids{1, 3}));
  EXPECT_EQ(events, std::vector<std::string>{"io-error"});
}

TEST_F(SessionTest, AnAnswerWithoutMemoryIsSentAgain) {
  int tries = 0;
  wire.verdict = [&](const dmu_msg& msg) { return msg.id == 1 && ++tries < 3 ? ENOMEM : 0; };
  start();
  wire.say(fault(1, 8));
  until([&] { return tries == 3; });
  EXPECT_TRUE(sent(DMU_MSG_FAIL).empty());
}

TEST_F(SessionTest, ARefusedAnswerFailsTheFault) {
  wire.verdict = [](const dmu_msg& msg) { return msg.type == DMU_MSG_MAP ? ERANGE : 0; };
  start();
  wire.say(fault(1, 8));
  settle();
  EXPECT_EQ(ids(DMU_MSG_FAIL), Ids{1});
  EXPECT_EQ(events, std::vector<std::string>{"kernel-error"});
}

TEST_F(SessionTest, AStalePushIsMadeAgainWithTheNewGeneration) {
  image.has_initial = true;
  wire.verdict = [](const dmu_msg& msg) {
    return msg.type == DMU_MSG_MAP && !msg.id && msg.gen < 9 ? ESTALE : 0;
  };
  start();
  EXPECT_EQ(sent(DMU_MSG_MAP).size(), 1U);
  dmu_msg next = fault(1, 512);
  next.gen = 9;
  wire.say(next);
  settle();
  auto maps = sent(DMU_MSG_MAP);
  ASSERT_EQ(maps.size(), 3U);
  EXPECT_EQ(maps[1].id, 0U);
  EXPECT_EQ(maps[1].gen, 9U);
}

TEST_F(SessionTest, ADiscardWithoutAnAnswerIsAcknowledged) {
  start();
  dmu_msg discard = dmu_msg_make(DMU_MSG_DISCARD, 1);
  discard.len = 8;
  wire.say(discard);
  dmu_msg zero = dmu_msg_make(DMU_MSG_ZERO, 2);
  zero.len = 8;
  wire.say(zero);
  settle();
  EXPECT_EQ(ids(DMU_MSG_ACK), Ids{1});
  EXPECT_EQ(ids(DMU_MSG_MAP), Ids{2});
}

dmu_msg no_room(uint64_t id) {
  dmu_msg error = dmu_msg_make(DMU_MSG_ERROR, id);
  error.len = 8;
  error.error = ENOSPC;
  return error;
}

TEST_F(SessionTest, AWriteWithoutRoomIsTriedAgainUntilThereIs) {
  settings.no_space_retry = 500ms;
  start();
  EXPECT_FALSE(session->space_wait());
  wire.say(no_room(1));
  settle();
  ASSERT_TRUE(session->space_wait());
  EXPECT_EQ(session->space_wait()->writes, 1U);
  EXPECT_FALSE(session->space_wait()->destination.empty());
  EXPECT_LE(session->space_wait()->since, std::chrono::system_clock::now());
  until([&] { return !sent(DMU_MSG_RETRY).empty(); });
  wire.say(no_room(1));
  until([&] { return sent(DMU_MSG_RETRY).size() == 2; });
  EXPECT_TRUE(session->space_wait());
  EXPECT_EQ(ids(DMU_MSG_RETRY), (Ids{1, 1}));
  EXPECT_EQ(events, std::vector<std::string>{"no-space"});
  EXPECT_EQ(looks, 2);
  until([&] { return events.size() == 2; });
  EXPECT_EQ(events.back(), "no-space-over");
  EXPECT_NE(sentences.back().find("goes on"), std::string::npos);
  EXPECT_FALSE(session->space_wait());
}

TEST_F(SessionTest, RoomThatWasAddedIsTriedAtOnce) {
  settings.no_space_retry = 1h;
  start();
  wire.say(no_room(1));
  settle();
  EXPECT_TRUE(sent(DMU_MSG_RETRY).empty());
  session->space_added();
  settle();
  EXPECT_EQ(ids(DMU_MSG_RETRY), Ids{1});
  session->space_added();
  settle();
  EXPECT_EQ(ids(DMU_MSG_RETRY), Ids{1}) << "it has its answer";
}

TEST_F(SessionTest, OrFailsWhereThePolicySaysSo) {
  settings.no_space = SessionSettings::NoSpace::fail;
  start();
  wire.say(no_room(1));
  settle();
  ASSERT_EQ(ids(DMU_MSG_FAIL), Ids{1});
  EXPECT_EQ(sent(DMU_MSG_FAIL)[0].error, ENOSPC);
  EXPECT_EQ(looks, 1);
  EXPECT_FALSE(session->space_wait());
}

TEST_F(SessionTest, OrWhenItHasWaitedLongEnough) {
  settings.no_space_timeout = 1ms;
  start();
  wire.say(no_room(1));
  until([&] { return !sent(DMU_MSG_RETRY).empty(); });
  wire.say(no_room(1));
  until([&] { return !sent(DMU_MSG_FAIL).empty(); });
  until([&] { return events.back() == "no-space-over"; });
  EXPECT_NE(sentences.back().find("waits no longer"), std::string::npos);
}

TEST_F(SessionTest, AFlushWhoseMetadataFindsNoRoomWaitsToo) {
  image.full = true;
  start();
  wire.say(with_seq(DMU_MSG_PROMOTED, 0, 3));
  wire.say(with_seq(DMU_MSG_FLUSH, 1, 3));
  until([&] { return image.commits.size() > 2; });
  EXPECT_TRUE(sent(DMU_MSG_FAIL).empty());
  EXPECT_TRUE(sent(DMU_MSG_ACK).empty());
  ASSERT_TRUE(session->space_wait());
  EXPECT_TRUE(session->space_wait()->metadata);
  EXPECT_EQ(events, std::vector<std::string>{"no-space"});
  EXPECT_GE(looks, 2);
  image.full = false;
  until([&] { return !sent(DMU_MSG_ACK).empty(); });
  EXPECT_EQ(ids(DMU_MSG_ACK), Ids{1});
  until([&] { return events.back() == "no-space-over"; });
}

TEST_F(SessionTest, ACommitThatIsAskedForDoesNotWaitForRoom) {
  settings.no_space_retry = 1h;
  image.full = true;
  start();
  wire.say(with_seq(DMU_MSG_PROMOTED, 0, 3));
  wire.say(with_seq(DMU_MSG_FLUSH, 1, 3));
  settle();
  std::optional<bool> well;
  spawn(session->commit_all(), well);
  settle();
  ASSERT_TRUE(well);
  EXPECT_FALSE(*well);
  EXPECT_TRUE(sent(DMU_MSG_FAIL).empty());
  image.full = false;
  well.reset();
  spawn(session->commit_all(), well);
  settle();
  ASSERT_TRUE(well);
  EXPECT_TRUE(*well);
  EXPECT_EQ(ids(DMU_MSG_ACK), Ids{1}) << "the flush has its commit as well";
}

TEST_F(SessionTest, StopLeavesWhatWaitsForRoomToTheNextOne) {
  settings.no_space_retry = 1h;
  image.full = true;
  start();
  wire.say(no_room(1));
  wire.say(with_seq(DMU_MSG_PROMOTED, 0, 3));
  wire.say(with_seq(DMU_MSG_FLUSH, 2, 3));
  settle();
  std::optional<bool> well;
  spawn(session->stop(), well);
  until([&] { return end.has_value() && well.has_value(); });
  EXPECT_EQ(well, true);
  EXPECT_TRUE(sent(DMU_MSG_FAIL).empty());
  EXPECT_TRUE(sent(DMU_MSG_ACK).empty());
  EXPECT_TRUE(sent(DMU_MSG_RETRY).empty());
}

TEST_F(SessionTest, WithoutWaitingAFlushWhoseMetadataFindsNoRoomFails) {
  settings.no_space = SessionSettings::NoSpace::fail;
  image.full = true;
  start();
  wire.say(with_seq(DMU_MSG_PROMOTED, 0, 3));
  wire.say(with_seq(DMU_MSG_FLUSH, 1, 3));
  settle();
  ASSERT_EQ(ids(DMU_MSG_FAIL), Ids{1});
  EXPECT_EQ(sent(DMU_MSG_FAIL)[0].error, ENOSPC);
  EXPECT_EQ(looks, 1);
}

TEST_F(SessionTest, InvalidateWaitsForTheDrain) {
  start();
  std::optional<bool> well;
  spawn(session->invalidate({0, 64}), well);
  settle();
  ASSERT_EQ(sent(DMU_MSG_INVALIDATE).size(), 1U);
  EXPECT_FALSE(well);
  wire.say(dmu_msg_make(DMU_MSG_INVALIDATED, sent(DMU_MSG_INVALIDATE)[0].id));
  settle();
  EXPECT_EQ(well, true);
}

TEST_F(SessionTest, StopCommitsAndEnds) {
  start();
  wire.say(with_seq(DMU_MSG_PROMOTED, 0, 3));
  settle();
  wire.to_daemon.push_back(with_seq(DMU_MSG_PROMOTED, 0, 4));  // not read yet
  std::optional<bool> well;
  spawn(session->stop(), well);
  settle();
  EXPECT_EQ(well, true);
  EXPECT_EQ(end, Session::End::stopped);
  ASSERT_EQ(sent(DMU_MSG_COMMITTED).size(), 1U);
  EXPECT_EQ(sent(DMU_MSG_COMMITTED)[0].seq, 4U);
}

// What a stop cuts short is asked of the next one; the guest must not see it fail.
TEST_F(SessionTest, AStopFailsNothingThatWaitsForTheKernel) {
  start();
  image.invalidate = [this](Range range) { return session->invalidate(range); };
  dmu_msg discard = dmu_msg_make(DMU_MSG_DISCARD, 1);
  discard.len = 8;
  wire.say(discard);
  settle();
  EXPECT_EQ(sent(DMU_MSG_INVALIDATE).size(), 1U);
  std::optional<bool> well;
  spawn(session->stop(), well);
  settle();
  EXPECT_EQ(end, Session::End::stopped);
  EXPECT_TRUE(sent(DMU_MSG_FAIL).empty());
  EXPECT_TRUE(sent(DMU_MSG_ACK).empty());
  EXPECT_TRUE(events.empty());
}

TEST_F(SessionTest, AStopFailsNoFlushOfWhichItCutsTheCommitShort) {
  image.held = true;
  start();
  wire.say(with_seq(DMU_MSG_PROMOTED, 0, 3));
  std::optional<bool> well;
  spawn(session->stop(), well);
  settle();
  ASSERT_EQ(image.commits.size(), 1U);
  // Its commit begins when that of the stop has ended.
  wire.say(with_seq(DMU_MSG_PROMOTED, 0, 4));
  wire.say(with_seq(DMU_MSG_FLUSH, 1, 4));
  settle();
  image.invalidate = [this](Range range) { return session->invalidate(range); };
  image.release();
  settle();
  EXPECT_EQ(image.commits.size(), 2U);
  EXPECT_EQ(end, Session::End::stopped);
  EXPECT_TRUE(sent(DMU_MSG_FAIL).empty());
  EXPECT_TRUE(sent(DMU_MSG_ACK).empty());
  EXPECT_TRUE(events.empty());
}

TEST_F(SessionTest, ADeviceThatGoesEndsTheSessionWhenItsRequestsHaveEnded) {
  image.slow_sector = 8;
  image.held = true;
  start();
  wire.say(fault(1, 8));
  settle();
  std::optional<bool> well;
  spawn(session->invalidate({0, 64}), well);
  settle();
  wire.gone = true;
  wire.readable.notify();
  settle();
  EXPECT_EQ(well, false);
  EXPECT_FALSE(end);
  image.release();
  settle();
  EXPECT_EQ(end, Session::End::device_gone);
}

}  // namespace
}  // namespace cowd
