// SPDX-License-Identifier: GPL-2.0-or-later
// Disks of domains under orders of events that a real Xen cannot be made to time: what ends
// while cowd is killed, what comes before what went is told. tests/xen has the real ones.
#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cowd/daemon/config.hh"
#include "cowd/daemon/event_ring.hh"
#include "cowd/daemon/vbds.hh"
#include "cowd/daemon/xen_link.hh"
#include "tests/unit/vbds_world.hh"

namespace cowd {
namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;

constexpr const char* kVm = "c0ffee00-0000-4000-8000-000000000001";
constexpr const char* kTransient = "dscow:transient@vg:/dev/null";
constexpr const char* kPersistent = "raw:/dev/null";
constexpr auto kNever = std::chrono::hours(1);

class Reactor : public asio::io_context {
 public:
  using asio::execution_context::shutdown;
};

// One run of cowd, from its start to its death.
struct Cowd {
  Cowd(FakeXen& xen, FakeStores& stores, const Config& config, Vbds::Pauses pauses)
      : devices(io.get_executor(), stores) {
    auto host = std::make_unique<FakeXen::Host>(xen);
    Vbds::watch(*host);
    vbds = std::make_unique<Vbds>(io, devices, events, config, std::move(host), pauses);
  }
  Reactor io;
  EventRing events;
  FakeDevices devices;
  std::unique_ptr<Vbds> vbds;
};

// What an add has come to.
struct Added {
  bool done = false;
  std::string device;
  int code = 0;
  std::string sentence;
};

class VbdsTest : public testing::Test {
 protected:
  VbdsTest() {
    pauses.look = pauses.again = kNever;
    char dir[] = "/tmp/cowd-vbds-XXXXXX";
    config.paths.run_dir = mkdtemp(dir);
  }
  ~VbdsTest() override {
    xen.block(false);
    if (cowd) kill();
    std::filesystem::remove_all(config.paths.run_dir);
  }

  void start() {
    cowd = std::make_unique<Cowd>(xen, stores, config, pauses);
    run(cowd->vbds->start());
  }
  // Its coroutines end where they are.
  void kill() {
    cowd->io.shutdown();
    cowd->vbds.reset();
    xen.wait_for_no_host();
    cowd.reset();
    xen.forget_events();
  }
  void kill_and_start() {
    kill();
    start();
  }

  bool until(const std::function<bool()>& met) {
    const auto end = std::chrono::steady_clock::now() + 60s;  // the machine may be busy
    while (!met() && std::chrono::steady_clock::now() < end) {
      cowd->io.restart();
      cowd->io.run_one_for(100ms);
    }
    return met();
  }
  void run(Task<> task) {
    bool done = false;
    asio::co_spawn(cowd->io, std::move(task), [&](std::exception_ptr error) {
      EXPECT_FALSE(error);
      done = true;
    });
    EXPECT_TRUE(until([&] { return done; }));
  }
  std::shared_ptr<Added> begin_add(const std::string& path, std::function<Task<>()> wanted = {}) {
    auto added = std::make_shared<Added>();
    if (!wanted) wanted = []() -> Task<> { co_return; };
    asio::co_spawn(cowd->io, cowd->vbds->add(path, wanted),
                   [added](std::exception_ptr error, const nlohmann::json& json) {
                     added->done = true;
                     try {
                       if (error) std::rethrow_exception(error);
                       added->device = json.at("name").get<std::string>();
                     } catch (const Error& failure) {
                       added->code = failure.code();
                       added->sentence = failure.what();
                     }
                   });
    return added;
  }
  Added add(const std::string& path) {
    auto added = begin_add(path);
    EXPECT_TRUE(until([&] { return added->done; })) << path;
    return *added;
  }
  std::shared_ptr<std::optional<int>> begin_remove(const std::string& path) {
    auto code = std::make_shared<std::optional<int>>();
    asio::co_spawn(cowd->io, cowd->vbds->remove(path), [code](std::exception_ptr error) {
      *code = 0;
      try {
        if (error) std::rethrow_exception(error);
      } catch (const Error& failure) {
        *code = failure.code();
      }
    });
    return code;
  }
  void remove(const std::string& path) { run(cowd->vbds->remove(path)); }
  // All that was under way, in cowd and on its Xen thread, has come to where it stays.
  void settle() {
    for (int i = 0; i < 5; ++i) add("backend/vbd/9999/1");
  }

  // A domain with a name of its own, as the toolstack makes it.
  XenDomain guest(unsigned id, const std::string& uuid = kVm) {
    XenDomain domain;
    domain.id = id;
    domain.uuid = uuid;
    domain.has_run = true;
    xen.domain(domain);
    xen.write(text("/local/domain/", id, "/name"), "guest");
    xen.write(text("/local/domain/", id, "/vm"), "/vm/" + uuid);
    return domain;
  }
  std::string node(unsigned domid, const std::string& params, const std::string& mode = "w") {
    const std::string path = text("backend/vbd/", domid, "/51712");
    xen.write(path + "/params", params);
    xen.write(path + "/dev", "xvda");
    xen.write(path + "/mode", mode);
    xen.write(path + "/online", "1");
    return path;
  }
  void suspend(XenDomain& domain) {
    domain.shut_down = true;
    domain.reason = XenDomain::kSuspend;
    xen.domain(domain);
  }
  void resume(XenDomain& domain) {
    domain.shut_down = false;
    xen.domain(domain);
  }
  // As block-dmu does.
  void leave_end(const std::string& name, const std::string& line) const {
    std::filesystem::create_directory(config.paths.run_dir + "/ends");
    std::ofstream(config.paths.run_dir + "/ends/" + name) << line;
  }
  bool left_end(const std::string& name) const {
    return std::filesystem::exists(config.paths.run_dir + "/ends/" + name);
  }
  size_t told(const std::string& type) const {
    const auto events = cowd->events.after(0);
    return static_cast<size_t>(std::count_if(events.begin(), events.end(),
                                             [&](const auto& each) { return each.type == type; }));
  }
  bool noted_keep(const std::string& device) { return stores.entries.at(device).domain.keep; }
  bool no_devices() const { return stores.entries.empty(); }
  std::string states() const {
    std::string all;
    for (const auto& [uuid, store] : stores.stores)
      all += uuid + (store.saved ? " saved" : " ") + ";";
    return all;
  }
  // A guest that was saved is here again, and has not run.
  XenDomain restored(unsigned id) {
    stores.stores["old"] = {{kVm, "xvda"}, true};
    XenDomain domain = guest(id);
    domain.has_run = false;
    xen.domain(domain);
    return domain;
  }

  // A guest's end, for that reason, of which the next cowd has the script's word alone.
  void end_unseen(unsigned reason) {
    guest(3);
    const std::string path = node(3, kTransient);
    add(path);
    kill();
    leave_end("3", text(kVm, " ", reason, "\n"));
    xen.end(3);
    xen.remove(path);
    start();
    EXPECT_TRUE(until([&] { return no_devices(); }));
  }

  FakeXen xen;
  FakeStores stores;
  Config config;
  Vbds::Pauses pauses;
  std::unique_ptr<Cowd> cowd;
};

TEST_F(VbdsTest, ADiskIsAttachedJoinedByItsNodeAndLeft) {
  start();
  guest(3);
  const std::string path = node(3, kTransient);
  const Added first = add(path);
  EXPECT_EQ(first.device, "vm-guest-xvda") << first.sentence;
  EXPECT_EQ(add(path).device, first.device);
  remove(path);
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "");
  EXPECT_TRUE(cowd->devices.said_it("leave vm-guest-xvda orderly"));
}

TEST_F(VbdsTest, EachOfThreeEndsADisk) {
  start();
  guest(3);
  const std::string path = node(3, kTransient);
  add(path);
  xen.remove("backend/vbd/3");
  EXPECT_TRUE(until([&] { return no_devices(); }));
  add(node(3, kTransient));
  xen.end(3);
  xen.release();
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_TRUE(cowd->devices.said_it("leave vm-guest-xvda dying"));
  EXPECT_EQ(states(), "");
}

// --- cowd is killed as a disk ends ---

class KilledAt : public VbdsTest, public testing::WithParamInterface<const char*> {};

TEST_P(KilledAt, TheStoreOfASavedGuestIsKept) {
  start();
  XenDomain domain = guest(3);
  const std::string path = node(3, kTransient);
  add(path);
  suspend(domain);
  cowd->devices.held = {GetParam()};
  remove(path);
  ASSERT_TRUE(until([&] {
    return std::any_of(cowd->devices.said.begin(), cowd->devices.said.end(),
                       [](const auto& line) { return line.starts_with(text(GetParam(), " ")); });
  }));
  xen.end(3);
  kill_and_start();
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "store-1 saved;");
}

TEST_P(KilledAt, TheStoreOfARestoredGuestThatRanGoes) {
  start();
  XenDomain domain = restored(3);
  const std::string path = node(3, kTransient);
  add(path);
  domain.has_run = true;
  xen.domain(domain);
  cowd->devices.held = {GetParam()};
  remove(path);
  ASSERT_TRUE(until([&] {
    return std::any_of(cowd->devices.said.begin(), cowd->devices.said.end(),
                       [](const auto& line) { return line.starts_with(text(GetParam(), " ")); });
  }));
  xen.end(3);
  kill_and_start();
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "");
}

INSTANTIATE_TEST_SUITE_P(EachStep, KilledAt, testing::Values("mark", "marked", "leave"));

TEST_F(VbdsTest, WhatCannotBeFoundOutIsKeptAlsoByTheNextCowd) {
  start();
  guest(3);
  const std::string path = node(3, kTransient);
  add(path);
  xen.break_domains(true);
  cowd->devices.held = {"mark"};
  remove(path);
  ASSERT_TRUE(until([&] { return cowd->devices.said_it("mark vm-guest-xvda saved"); }));
  xen.break_domains(false);
  kill_and_start();
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "store-1 saved;");
}

TEST_F(VbdsTest, TheMarkOfARestoredGuestThatRunsGoesHoweverOftenThatFails) {
  pauses.look = pauses.again = 1ms;
  start();
  XenDomain domain = restored(3);
  add(node(3, kTransient));
  cowd->devices.broken_marks = 3;
  domain.has_run = true;
  xen.domain(domain);
  EXPECT_TRUE(until([&] { return states().find("saved") == std::string::npos; }));
  EXPECT_EQ(cowd->devices.broken_marks, 0);
}

TEST_F(VbdsTest, AFailedRestoreLeavesTheStoreAsItWas) {
  start();
  restored(3);
  const std::string path = node(3, kTransient);
  add(path);
  cowd->devices.held = {"leave"};
  remove(path);
  ASSERT_TRUE(until([&] { return cowd->devices.said_it("leave vm-guest-xvda suspended"); }));
  xen.end(3);
  kill_and_start();
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "old saved;");
}

TEST_F(VbdsTest, MarkingIsTriedUntilItWorks) {
  pauses.again = 1ms;
  start();
  XenDomain domain = guest(3);
  const std::string path = node(3, kTransient);
  add(path);
  suspend(domain);
  cowd->devices.broken_marks = 3;
  remove(path);
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "store-1 saved;");
}

// Its first mark is still being taken away when it gets the second.
TEST_F(VbdsTest, AGuestSavedRightAfterItsRestoreIsKept) {
  pauses.look = 1ms;
  start();
  XenDomain domain = restored(3);
  const std::string path = node(3, kTransient);
  add(path);
  cowd->devices.held = {"mark"};
  domain.has_run = true;
  xen.domain(domain);
  ASSERT_TRUE(until([&] { return cowd->devices.said_it("mark vm-guest-xvda not saved"); }));
  suspend(domain);
  remove(path);
  ASSERT_TRUE(until([&] { return stores.entries.at("vm-guest-xvda").domain.vbds.empty(); }));
  settle();
  cowd->devices.let_go();
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "old saved;");
}

// --- a suspension that was not the end ---

TEST_F(VbdsTest, AGuestThatWentOnIsNotKeptWhenItIsDestroyed) {
  start();
  XenDomain domain = guest(3);
  const std::string path = node(3, kTransient);
  add(path);
  suspend(domain);
  xen.release();
  ASSERT_TRUE(until([&] { return noted_keep("vm-guest-xvda"); }));
  resume(domain);  // of which no event tells
  remove(path);
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "");
}

TEST_F(VbdsTest, NorIsOneThatDiesBeforeItsDiskIsTakenAway) {
  start();
  XenDomain domain = guest(3);
  const std::string path = node(3, kTransient);
  add(path);
  suspend(domain);
  xen.release();
  ASSERT_TRUE(until([&] { return noted_keep("vm-guest-xvda"); }));
  resume(domain);
  domain.dying = true;
  xen.domain(domain);
  xen.release();
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "");
  EXPECT_TRUE(cowd->devices.said_it("leave vm-guest-xvda dying"));
}

TEST_F(VbdsTest, NorIsOneThatEndsWhileNoCowdRuns) {
  pauses.look = 1ms;
  start();
  XenDomain domain = guest(3);
  const std::string path = node(3, kTransient);
  add(path);
  suspend(domain);
  xen.release();
  ASSERT_TRUE(until([&] { return noted_keep("vm-guest-xvda"); }));
  resume(domain);
  EXPECT_TRUE(until([&] { return !noted_keep("vm-guest-xvda"); }));
  kill();
  xen.end(3);
  xen.remove(path);
  start();
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "");
}

TEST_F(VbdsTest, ASavedGuestIsKeptAlsoWhenItsDomainHasGoneAlready) {
  start();
  XenDomain domain = guest(3);
  const std::string path = node(3, kTransient);
  add(path);
  suspend(domain);
  xen.release();
  ASSERT_TRUE(until([&] { return noted_keep("vm-guest-xvda"); }));
  xen.end(3);
  xen.release();
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "store-1 saved;");
}

TEST_F(VbdsTest, WritesThatWaitDoNotHoldUpTheEndOfAGuestThatWentOn) {
  start();
  XenDomain domain = guest(3);
  const std::string path = node(3, kPersistent);
  add(path);
  stores.open.insert("vm-guest-xvda");
  suspend(domain);
  xen.release();
  ASSERT_TRUE(until([&] { return noted_keep("vm-guest-xvda"); }));
  resume(domain);
  remove(path);
  ASSERT_TRUE(until([&] { return cowd->devices.said_it("leave vm-guest-xvda orderly"); }));
  domain.dying = true;
  xen.domain(domain);
  xen.release();
  EXPECT_TRUE(until([&] { return cowd->devices.said_it("abandon vm-guest-xvda"); }));
}

TEST_F(VbdsTest, ThoseOfASavedGuestAreWaitedFor) {
  start();
  XenDomain domain = guest(3);
  const std::string path = node(3, kPersistent);
  add(path);
  stores.open.insert("vm-guest-xvda");
  suspend(domain);
  remove(path);
  ASSERT_TRUE(until([&] { return cowd->devices.said_it("leave vm-guest-xvda orderly"); }));
  xen.end(3);
  xen.release();
  settle();
  kill_and_start();
  settle();
  EXPECT_FALSE(cowd->devices.said_it("abandon vm-guest-xvda"));
}

// --- the next domain of the same VM ---

TEST_F(VbdsTest, ARebootWhileNoCowdRunsGetsAFreshStore) {
  start();
  guest(3);
  add(node(3, kTransient));
  kill();
  xen.end(3);
  xen.remove("backend/vbd/3");
  guest(4);
  const std::string next = node(4, kTransient);
  xen.forget_events();
  start();
  EXPECT_EQ(add(next).device, "vm-guest-xvda");
  EXPECT_EQ(states(), "store-2 ;");
}

TEST_F(VbdsTest, ARebootWhileXenDoesNotAnswerGetsAFreshStore) {
  start();
  guest(3);
  add(node(3, kTransient));
  xen.block(true);
  auto lost = begin_add("backend/vbd/9999/1");
  ASSERT_TRUE(until([&] { return xen.in_call(); }));
  guest(4);
  auto added = begin_add(node(4, kTransient));
  cowd->io.restart();
  cowd->io.poll();  // it has asked, too
  xen.end(3);
  xen.remove("backend/vbd/3");
  xen.release();
  xen.block(false);
  ASSERT_TRUE(until([&] { return added->done && lost->done; }));
  EXPECT_EQ(added->device, "vm-guest-xvda") << added->sentence;
  EXPECT_EQ(states(), "store-2 ;");
}

TEST_F(VbdsTest, KeptOnRebootItIsTheSameStore) {
  config.devices.keep_on_reboot = true;
  start();
  XenDomain domain = guest(3);
  add(node(3, kTransient));
  domain.shut_down = true;
  domain.reason = XenDomain::kReboot;
  xen.domain(domain);
  xen.release();
  ASSERT_TRUE(until([&] { return noted_keep("vm-guest-xvda"); }));
  kill();
  xen.end(3);
  xen.remove("backend/vbd/3");
  guest(4);
  start();
  EXPECT_EQ(add("backend/vbd/4/51712").code, ENOENT);
  EXPECT_EQ(add(node(4, kTransient)).device, "vm-guest-xvda");
  EXPECT_EQ(states(), "store-1 saved;");
}

TEST_F(VbdsTest, AMigrationOnOneHostSharesTheDevice) {
  start();
  XenDomain source = guest(3);
  const std::string from = node(3, kTransient);
  const std::string device = add(from).device;
  suspend(source);
  xen.release();
  ASSERT_TRUE(until([&] { return noted_keep(device); }));
  guest(4);
  const std::string to = node(4, kTransient);
  EXPECT_EQ(add(to).device, device);
  remove(from);
  EXPECT_TRUE(
      until([&] { return stores.entries.at(device).domain.vbds == std::vector<std::string>{to}; }));
  EXPECT_FALSE(noted_keep(device));
  remove(to);
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "");
}

// Two writers of one store would be one writer too many, also where one guest has both.
TEST_F(VbdsTest, AGuestDoesNotHaveADiskTwice) {
  start();
  guest(3);
  EXPECT_EQ(add(node(3, kPersistent)).code, 0);
  const std::string second = "backend/vbd/3/51728";
  xen.write(second + "/params", kPersistent);
  xen.write(second + "/dev", "xvdb");
  xen.write(second + "/mode", "w");
  const Added refused = add(second);
  EXPECT_EQ(refused.code, EBUSY);
  EXPECT_NE(refused.sentence.find("vm-guest-xvda"), std::string::npos) << refused.sentence;
  EXPECT_EQ(stores.entries.size(), 1U);
}

TEST_F(VbdsTest, WritesThatWaitDoNotHoldUpAReboot) {
  start();
  XenDomain first = guest(3);
  const std::string path = node(3, kPersistent);
  add(path);
  stores.open.insert("vm-guest-xvda");
  remove(path);
  ASSERT_TRUE(until([&] { return cowd->devices.said_it("leave vm-guest-xvda orderly"); }));
  guest(4);
  auto next = begin_add(node(4, kPersistent));
  first.dying = true;
  xen.domain(first);
  kill_and_start();  // the next cowd knows whose end it is, too
  next = begin_add("backend/vbd/4/51712");
  xen.release();
  EXPECT_TRUE(until([&] { return cowd->devices.said_it("abandon vm-guest-xvda"); }));
  EXPECT_TRUE(until([&] { return next->done; }));
  EXPECT_EQ(next->device, "vm-guest-xvda") << next->sentence;
}

TEST_F(VbdsTest, ADomainThatDiesWhileTheEndIsNotedIsNotMissed) {
  start();
  guest(3);
  const std::string path = node(3, kPersistent);
  add(path);
  stores.open.insert("vm-guest-xvda");
  cowd->devices.held = {"note"};
  begin_remove(path);
  ASSERT_TRUE(until([&] { return cowd->devices.said_it("note vm-guest-xvda"); }));
  xen.end(3);
  xen.release();
  settle();
  cowd->devices.let_go();
  EXPECT_TRUE(until([&] { return cowd->devices.said_it("abandon vm-guest-xvda"); }));
}

// --- a domain that ends while no cowd runs, and what block-dmu leaves of that ---

TEST_F(VbdsTest, ARemovalIsAnsweredWhenItIsNoted) {
  start();
  guest(3);
  const std::string path = node(3, kTransient);
  add(path);
  cowd->devices.held = {"note"};
  auto removed = begin_remove(path);
  ASSERT_TRUE(until([&] { return cowd->devices.said_it("note vm-guest-xvda"); }));
  settle();
  EXPECT_FALSE(*removed);
  cowd->devices.let_go();
  EXPECT_TRUE(until([&] { return removed->has_value(); }));
  EXPECT_EQ(*removed, 0);
}

TEST_F(VbdsTest, OneThatCannotBeNotedIsRefusedAndGoesOn) {
  start();
  guest(3);
  const std::string path = node(3, kTransient);
  add(path);
  cowd->devices.broken_notes = 1;
  auto removed = begin_remove(path);
  ASSERT_TRUE(until([&] { return removed->has_value(); }));
  EXPECT_EQ(*removed, ENOSPC);
  EXPECT_TRUE(until([&] { return no_devices(); }));
}

TEST_F(VbdsTest, OneThatWasSavedWhileNoCowdRunsIsKept) {
  start();
  end_unseen(2);
  EXPECT_EQ(states(), "store-1 saved;");
  EXPECT_TRUE(until([&] { return !left_end("3"); }));
  // And finds its store.
  guest(4);
  add(node(4, kTransient));
  EXPECT_EQ(states(), "store-1 saved;");
}

TEST_F(VbdsTest, SoIsOneWhoseNextDomainComesFirst) {
  start();
  guest(3);
  const std::string path = node(3, kTransient);
  add(path);
  kill();
  leave_end("3", text(kVm, " 2\n"));
  xen.end(3);
  xen.remove(path);
  guest(4);
  const std::string next = node(4, kTransient);
  xen.break_domains(true);
  xen.break_reads(true);
  start();
  settle();
  xen.break_domains(false);
  xen.break_reads(false);
  EXPECT_EQ(add(next).device, "vm-guest-xvda");
  EXPECT_EQ(states(), "store-1 saved;");
}

TEST_F(VbdsTest, WhatIsNoSuchNoteKeepsNothing) {
  for (const auto& [name, line] : std::vector<std::pair<std::string, std::string>>{
           {"3", "c0ffee00-0000-4000-8000-000000000002 2\n"},
           {"4", text(kVm, " 2\n")},
           {"3", text(kVm, " 1\n")},
           {"3", text(kVm, " x\n")},
           {"3", text(kVm, "\n")},
           {"3", ""},
           {"3x", text(kVm, " 2\n")},
           {".3", text(kVm, " 2\n")}}) {
    start();
    guest(3);
    const std::string path = node(3, kTransient);
    add(path);
    kill();
    leave_end(name, line);
    xen.end(3);
    xen.remove(path);
    start();
    EXPECT_TRUE(until([&] { return no_devices(); })) << name << " " << line;
    EXPECT_EQ(states(), "") << name << " " << line;
    kill();
    std::filesystem::remove_all(config.paths.run_dir + "/ends");
  }
}

TEST_F(VbdsTest, KeptOnRebootItIsTheSameStoreAlsoThen) {
  config.devices.keep_on_reboot = true;
  start();
  end_unseen(1);
  EXPECT_EQ(states(), "store-1 saved;");
}

// --- when Xen is not there yet ---

TEST(XenLinkTest, XenIsTriedUntilItIsThere) {
  FakeXen xen;
  FakeStores stores;
  EventRing events;
  Config config;
  Reactor io;
  FakeDevices devices(io.get_executor(), stores);
  xen.break_watches(3);
  unsigned opened = 0;
  XenLink::Access access;
  access.is_here = [] { return true; };
  access.open = [&](const std::vector<std::string>&) {
    ++opened;
    return std::make_unique<FakeXen::Host>(xen);
  };
  access.again = 1ms;
  std::optional<XenLink> link(std::in_place, io, devices, events, config, access);
  const auto run = [&](const bool& done) {
    for (const auto end = std::chrono::steady_clock::now() + 20s;
         !done && std::chrono::steady_clock::now() < end;) {
      io.restart();
      io.run_one_for(100ms);
    }
    EXPECT_TRUE(done);
  };
  bool tried = false;
  asio::co_spawn(io, link->start(), [&](std::exception_ptr error) {
    EXPECT_FALSE(error);
    tried = true;
  });
  run(tried);
  // By nobody's request.
  bool serves = false;
  const auto look = [&]() -> Task<> {
    while (opened < 4) {
      asio::steady_timer pause(io, 1ms);
      co_await pause.async_wait(asio::use_awaitable);
    }
    EXPECT_TRUE(co_await link->get());
  };
  asio::co_spawn(io, look(), [&](std::exception_ptr error) {
    EXPECT_FALSE(error);
    serves = true;
  });
  run(serves);
  EXPECT_EQ(opened, 4U);
  io.shutdown();
  link.reset();
  xen.wait_for_no_host();
}

// --- more than one add ---

Task<> gave_up() {
  throw Error(EPIPE, "Nobody waits.");
  co_return;
}

TEST_F(VbdsTest, WhatAGivenUpAddMadeIsTheNextOnes) {
  start();
  guest(3);
  const std::string path = node(3, kTransient);
  cowd->devices.held = {"attach"};
  auto first = begin_add(path, gave_up);
  ASSERT_TRUE(until([&] { return cowd->devices.said_it("attach vm-guest-xvda"); }));
  auto second = begin_add(path);
  settle();
  cowd->devices.let_go();
  ASSERT_TRUE(until([&] { return first->done && second->done; }));
  EXPECT_EQ(first->code, ECANCELED) << first->sentence;
  EXPECT_EQ(second->device, "vm-guest-xvda") << second->sentence;
  settle();
  EXPECT_EQ(stores.entries.at("vm-guest-xvda").domain.vbds, std::vector<std::string>{path});
  EXPECT_FALSE(cowd->devices.said_it("leave vm-guest-xvda orderly"));
  EXPECT_EQ(cowd->devices.said.size(), 3U);  // attach, entry, note
}

TEST_F(VbdsTest, WhatAllGaveUpIsLeft) {
  start();
  guest(3);
  const std::string path = node(3, kTransient);
  cowd->devices.held = {"attach"};
  auto first = begin_add(path, gave_up);
  ASSERT_TRUE(until([&] { return cowd->devices.said_it("attach vm-guest-xvda"); }));
  auto second = begin_add(path, gave_up);
  settle();
  cowd->devices.let_go();
  ASSERT_TRUE(until([&] { return first->done && second->done; }));
  EXPECT_EQ(second->code, ECANCELED) << second->sentence;
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "");
}

TEST_F(VbdsTest, AGivenUpAddIsNotInTheWayOfAnotherDisk) {
  start();
  guest(3);
  const std::string path = node(3, kTransient);
  cowd->devices.held = {"attach"};
  auto first = begin_add(path, gave_up);
  ASSERT_TRUE(until([&] { return cowd->devices.said_it("attach vm-guest-xvda"); }));
  xen.remove(path);
  auto second = begin_add(node(3, kPersistent));
  settle();
  cowd->devices.let_go();
  ASSERT_TRUE(until([&] { return first->done && second->done; }));
  EXPECT_EQ(first->code, ECANCELED) << first->sentence;
  EXPECT_EQ(second->code, 0) << second->sentence;
  settle();
  ASSERT_EQ(stores.entries.size(), 1U);
  EXPECT_EQ(stores.entries.begin()->second.spec, kPersistent);
  EXPECT_EQ(states(), "");
}

TEST_F(VbdsTest, ASecondAddThatIsGivenUpLeavesTheDiskToItsUser) {
  start();
  guest(3);
  const std::string path = node(3, kTransient);
  add(path);
  auto second = begin_add(path, gave_up);
  ASSERT_TRUE(until([&] { return second->done; }));
  EXPECT_EQ(second->code, ECANCELED) << second->sentence;
  kill_and_start();
  second = begin_add(path, gave_up);
  ASSERT_TRUE(until([&] { return second->done; }));
  settle();
  EXPECT_EQ(stores.entries.at("vm-guest-xvda").domain.vbds, std::vector<std::string>{path});
}

TEST_F(VbdsTest, ADiskThatIsTakenAwayMeanwhileIsNotGiven) {
  start();
  guest(3);
  const std::string path = node(3, kTransient);
  stores.open.insert("vm-guest-xvda");
  auto added = begin_add(path, [&]() -> Task<> { return cowd->vbds->remove(path); });
  ASSERT_TRUE(until([&] { return added->done; }));
  EXPECT_EQ(added->code, ECANCELED) << added->sentence;
}

TEST_F(VbdsTest, ADomainThatDiesWhileItsDiskIsAttachedLeavesNothing) {
  start();
  XenDomain domain = guest(3);
  cowd->devices.held = {"attach"};
  auto added = begin_add(node(3, kTransient));
  ASSERT_TRUE(until([&] { return cowd->devices.said_it("attach vm-guest-xvda"); }));
  domain.dying = true;
  xen.domain(domain);
  xen.release();
  settle();
  cowd->devices.let_go();
  ASSERT_TRUE(until([&] { return added->done; }));
  EXPECT_EQ(added->code, ECANCELED) << added->sentence;
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "");
}

TEST_F(VbdsTest, ADeviceThatGoesAsItIsMadeIsNotGiven) {
  start();
  guest(3);
  const std::string path = node(3, kPersistent);
  cowd->devices.held = {"entry"};
  auto added = begin_add(path);
  ASSERT_TRUE(until([&] { return cowd->devices.said_it("entry vm-guest-xvda"); }));
  stores.leaving.insert("vm-guest-xvda");
  cowd->devices.close("vm-guest-xvda");
  cowd->devices.let_go();
  ASSERT_TRUE(until([&] { return added->done; }));
  EXPECT_EQ(added->code, ENODEV) << added->sentence;
  EXPECT_EQ(add(path).device, "vm-guest-xvda");
  EXPECT_EQ(stores.entries.size(), 1U);
}

TEST_F(VbdsTest, AnEndThatIsToldLateIsNotThatOfTheNextDevice) {
  start();
  guest(3);
  const std::string path = node(3, kTransient);
  const std::string device = add(path).device;
  cowd->devices.held = {"tell"};
  remove(path);
  ASSERT_TRUE(until([&] { return no_devices(); }));
  guest(4, "c0ffee00-0000-4000-8000-000000000002");
  const std::string next = node(4, kTransient);
  EXPECT_EQ(add(next).device, device);
  cowd->devices.let_go();
  settle();
  remove(next);
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "");
}

// Of its end nobody told.
TEST_F(VbdsTest, ANodeThatWasMadeAnewMayHaveAnotherDisk) {
  start();
  guest(3);
  const std::string path = node(3, kTransient);
  add(path);
  xen.write(path + "/physical-device", "fd:10");
  xen.write(path + "/params", kPersistent);
  EXPECT_EQ(add(path).code, EEXIST);
  xen.remove(path);
  node(3, kPersistent);
  EXPECT_EQ(add(path).code, 0);
  ASSERT_EQ(stores.entries.size(), 1U);
  EXPECT_EQ(stores.entries.begin()->second.spec, kPersistent);
  EXPECT_EQ(states(), "");
  // Nor of the end of its domain.
  xen.write(path + "/physical-device", "fd:10");
  xen.end(3);
  guest(3, "c0ffee00-0000-4000-8000-000000000002");
  EXPECT_EQ(add(path).code, 0);
  ASSERT_EQ(stores.entries.size(), 1U);
  EXPECT_EQ(stores.entries.begin()->second.domain.vm_uuid, "c0ffee00-0000-4000-8000-000000000002");
}

// Two domains that run may have one UUID: xl restore of what xl save -c left.
TEST_F(VbdsTest, TwoDomainsThatRunDoNotWriteToOneDisk) {
  start();
  XenDomain first = guest(3);
  const std::string path = node(3, kPersistent);
  const std::string device = add(path).device;
  guest(4);
  const std::string other = node(4, kPersistent);
  const Added refused = add(other);
  EXPECT_EQ(refused.code, EBUSY);
  EXPECT_NE(refused.sentence.find(path), std::string::npos) << refused.sentence;
  suspend(first);
  EXPECT_EQ(add(other).device, device);
}

TEST_F(VbdsTest, TwoThatOnlyReadDo) {
  start();
  guest(3);
  guest(4);
  const std::string device = add(node(3, kPersistent, "r")).device;
  EXPECT_EQ(add(node(4, kPersistent, "r")).device, device);
}

// --- what fails is done again ---

TEST_F(VbdsTest, WhatCouldNotBeLookedAtIsLookedAtAgain) {
  pauses.again = 1ms;
  start();
  guest(3);
  add(node(3, kTransient));
  kill();
  xen.end(3);
  xen.break_domains(true);
  start();
  settle();
  EXPECT_FALSE(no_devices());
  xen.break_domains(false);
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "");

  guest(3);
  const std::string path = node(3, kTransient);
  EXPECT_EQ(add(path).code, 0);
  xen.break_reads(true);
  xen.remove("backend/vbd/3");
  settle();
  EXPECT_FALSE(no_devices());
  xen.break_reads(false);
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(told("xen-error"), 2U);
}

TEST_F(VbdsTest, WhatGoesWrongAgainAndAgainIsToldOnce) {
  pauses.again = 1ms;
  start();
  XenDomain domain = guest(3);
  const std::string path = node(3, kTransient);
  add(path);
  suspend(domain);
  cowd->devices.broken_marks = 5;
  remove(path);
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(told("xen-error"), 1U);
}

// --- domain 0 beside a guest ---

TEST_F(VbdsTest, DomainZeroAndAGuestDoNotWriteToOneDisk) {
  start();
  guest(0, kDomainZero);
  guest(3);
  const std::string zero = node(0, kPersistent), path = node(3, kPersistent);
  EXPECT_EQ(add(zero).code, 0);
  Added refused = add(path);
  EXPECT_EQ(refused.code, EBUSY);
  EXPECT_NE(refused.sentence.find("backend/vbd/0/51712"), std::string::npos) << refused.sentence;
  remove(zero);
  EXPECT_EQ(add(path).code, 0);
  refused = add(zero);
  EXPECT_EQ(refused.code, EBUSY);
  EXPECT_NE(refused.sentence.find(path), std::string::npos) << refused.sentence;
}

TEST_F(VbdsTest, ADiskThatBothOnlyReadTheyShare) {
  start();
  guest(0, kDomainZero);
  guest(3);
  EXPECT_EQ(add(node(0, kPersistent, "r")).code, 0);
  EXPECT_EQ(add(node(3, kPersistent, "r")).code, 0);
}

// blkback lets go of the disk a moment after the script.
TEST_F(VbdsTest, WhatPygrubReadIsWaitedFor) {
  start();
  guest(0, kDomainZero);
  guest(3);
  const std::string zero = node(0, kPersistent);
  const std::string device = add(zero).device;
  stores.open.insert(device);
  remove(zero);
  auto added = begin_add(node(3, kPersistent));
  settle();
  EXPECT_FALSE(added->done);
  cowd->devices.close(device);
  EXPECT_TRUE(until([&] { return added->done; }));
  EXPECT_EQ(added->code, 0) << added->sentence;
}

TEST_F(VbdsTest, AlsoIfItsScriptCouldNotTellUs) {
  start();
  guest(0, kDomainZero);
  guest(3);
  const std::string zero = node(0, kPersistent);
  const std::string device = add(zero).device;
  stores.open.insert(device);
  xen.write(zero + "/online", "0");
  auto added = begin_add(node(3, kPersistent));
  settle();
  EXPECT_FALSE(added->done);
  EXPECT_TRUE(stores.leaving.contains(device));
  cowd->devices.close(device);
  EXPECT_TRUE(until([&] { return added->done; }));
  EXPECT_EQ(added->code, 0) << added->sentence;
}

// --- nonsense, and too much of it ---

TEST_F(VbdsTest, GarbageInParamsHarmsNobody) {
  start();
  guest(3);
  const std::string fine = add(node(3, kTransient)).device;
  for (const std::string& garbage :
       {std::string("x"), std::string(":"), std::string("dscow:"), std::string("@../../etc/passwd"),
        std::string("dscow:transient@../..:/dev/null"), std::string("raw:/dev/null\n"),
        std::string("\xff\xfe\0\x01", 4), std::string(100000, ':'),
        "dscow:" + std::string(100000, '/')}) {
    guest(4, "c0ffee00-0000-4000-8000-000000000002");
    const Added added = add(node(4, garbage));
    EXPECT_NE(added.code, 0) << garbage.substr(0, 100);
    EXPECT_EQ(stores.entries.size(), 1U);
  }
  for (const char* path : {"", "backend/vbd", "backend/vbd/3", "backend/vbd/3/51712/params",
                           "backend/vbd/../../etc", "backend/vbd/x/1", "backend/vbd/3/-1",
                           "backend/vbd/99999999999/1", "/local/domain/0/backend/vbd/3/51712"})
    EXPECT_EQ(add(path).code, EINVAL) << path;
  EXPECT_EQ(add("backend/vbd/3/51712").device, fine);
}

TEST_F(VbdsTest, NodesThatVanishHalfWayLeaveNothing) {
  start();
  guest(3);
  EXPECT_EQ(add("backend/vbd/3/51712").code, ENOENT);
  const std::string path = node(3, kTransient);
  cowd->devices.held = {"attach"};
  auto added = begin_add(path);
  ASSERT_TRUE(until([&] { return cowd->devices.said_it("attach vm-guest-xvda"); }));
  xen.remove("backend/vbd/3");
  cowd->devices.let_go();
  ASSERT_TRUE(until([&] { return added->done; }));
  EXPECT_EQ(added->code, ECANCELED) << added->sentence;
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_EQ(states(), "");
  // The domain itself, and whoever asked.
  node(3, kTransient);
  xen.remove("/local/domain/3");
  EXPECT_EQ(add(path).code, ENOENT);
  guest(3);
  added = begin_add(path, []() -> Task<> {
    throw Error(EPIPE, "Nobody waits.");
    co_return;
  });
  ASSERT_TRUE(until([&] { return added->done; }));
  EXPECT_EQ(added->code, ECANCELED) << added->sentence;
  EXPECT_TRUE(until([&] { return no_devices(); }));
}

std::vector<std::string> many_nodes(FakeXen& xen) {
  std::vector<std::string> paths;
  for (int i = 0; i < 2000; ++i) {
    paths.push_back(text("backend/vbd/", 1000 + i, "/51712/physical-device"));
    xen.write(paths.back(), "7:1");
  }
  return paths;
}

TEST_F(VbdsTest, OfEventsThatComeAgainAndAgainEachIsLookedAtOnce) {
  start();
  guest(3);
  const auto paths = many_nodes(xen);
  ASSERT_TRUE(until([&] { return cowd->devices.hindered_asked >= 2000; }));
  settle();
  const size_t before = xen.reads();
  const size_t asked = cowd->devices.hindered_asked;
  xen.block(true);
  auto added = begin_add(node(3, kTransient));
  ASSERT_TRUE(until([&] { return xen.in_call(); }));
  for (int i = 0; i < 50; ++i) xen.tell_often(paths);
  xen.block(false);
  ASSERT_TRUE(until([&] { return added->done; }));
  EXPECT_EQ(added->code, 0) << added->sentence;
  settle();
  ASSERT_TRUE(until([&] { return cowd->devices.hindered_asked >= asked + 2000; }));
  EXPECT_LE(xen.reads() - before, 2 * 2 * 2000U + 100);
}

TEST_F(VbdsTest, AFloodThatNeverEndsStarvesNobody) {
  start();
  guest(3);
  xen.flood(many_nodes(xen));
  ASSERT_TRUE(until([&] { return cowd->devices.hindered_asked >= 2000; }));
  const std::string path = node(3, kTransient);
  EXPECT_EQ(add(path).code, 0);
  xen.end(3);
  xen.release();
  EXPECT_TRUE(until([&] { return no_devices(); }));
  EXPECT_LE(xen.reads(), 2 * 2000 * (xen.batches() + 1) + 100);
  xen.flood({});
}

TEST_F(VbdsTest, ManyThatAskForNothingStarveNobody) {
  start();
  guest(3);
  std::vector<std::shared_ptr<Added>> all;
  for (int i = 0; i < 2000; ++i) all.push_back(begin_add(text("backend/vbd/", 1000 + i, "/51712")));
  EXPECT_EQ(add(node(3, kTransient)).code, 0);
  EXPECT_TRUE(until([&] {
    return std::all_of(all.begin(), all.end(), [](const auto& each) { return each->done; });
  }));
  EXPECT_EQ(stores.entries.size(), 1U);
}

}  // namespace
}  // namespace cowd
