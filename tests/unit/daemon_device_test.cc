// SPDX-License-Identifier: GPL-2.0-or-later
// Devices over a backing that hangs or fails, and over a cowd that is killed: the formats and the
// files are real, device-mapper is not (fake_dm.hh).
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "cowd/core/async_io.hh"
#include "cowd/core/error.hh"
#include "cowd/core/run.hh"
#include "cowd/daemon/device_manager.hh"
#include "tests/unit/fake_dm.hh"

namespace cowd {
namespace {

namespace asio = boost::asio;
namespace fs = std::filesystem;
using namespace std::chrono_literals;
using nlohmann::json;

// What opening a path does.
class Gate {
 public:
  void hold(const std::string& path) {
    const std::lock_guard lock(mutex_);
    held_.insert(path);
  }
  void refuse(const std::string& path) {
    const std::lock_guard lock(mutex_);
    refused_.insert(path);
  }
  void release() {
    const std::lock_guard lock(mutex_);
    held_.clear();
    refused_.clear();
    changed_.notify_all();
  }
  void pass(const std::string& path) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !held_.contains(path); });
    if (refused_.contains(path)) throw Error(EIO, path + " is not there at this moment.");
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::string> held_, refused_;
};
Gate gate;

// A file stands for the device that it would lie behind.
Backing open_file(std::shared_ptr<AsyncIo> io, const Component& component, BackingUse use) {
  gate.pass(component.path);
  const bool reads = use == BackingUse::base || use == BackingUse::image;
  auto disk = BlockDisk::open(std::move(io), component.path,
                              reads ? BlockDisk::Open::read_only : BlockDisk::Open::writable);
  struct stat info {};
  stat(component.path.c_str(), &info);
  return {std::move(disk), component.path, makedev(7, info.st_ino & 0xfffff), nullptr};
}

class Reactor : public asio::io_context {
 public:
  using asio::execution_context::shutdown;
};

struct Cowd {
  explicit Cowd(const std::string& directory)
      : run_dir(directory), plugins({"build/plugins"}), devices(io, config, environment()) {}
  ~Cowd() { io.shutdown(); }  // as if killed

  DeviceEnvironment environment() {
    DeviceEnvironment all;
    all.io = make_async_io(io);
    all.plugins = &plugins;
    all.open = open_file;
    all.events = &events;
    all.run_dir = &run_dir;
    all.host_id = "0123456789abcdef0123456789abcdef";
    all.boot_id = "11111111-2222-3333-4444-555555555555";
    return all;
  }

  Reactor io;
  Config config;
  EventRing events;
  RunDir run_dir;
  PluginLoader plugins;
  DeviceManager devices;
};

class DeviceTest : public testing::Test {
 protected:
  DeviceTest() {
    char name[] = "/tmp/device-XXXXXX";
    dir = mkdtemp(name);
    start();
    run(cowd->devices.reattach_all());
  }
  ~DeviceTest() override {
    gate.release();
    cowd.reset();
    fake_dm::clear();
    fs::remove_all(dir);
  }

  void start() { cowd = std::make_unique<Cowd>(dir + "/run"); }
  void kill_and_start() {
    cowd.reset();
    start();
  }
  std::string file(const std::string& name, uint64_t bytes = 1 << 20) {
    const std::string path = dir + "/" + name;
    std::ofstream{path};
    fs::resize_file(path, bytes);
    return path;
  }
  // A dscow store and its base; what opens it.
  std::string store(const std::string& name) {
    const std::string top = dir + "/" + name;
    const FormatDescriptor& dscow = cowd->plugins.load("dscow");
    auto io = make_async_io(cowd->io);
    CreateRequest request;
    request.base = BlockDisk::open(io, file(name + "-base"), BlockDisk::Open::read_only);
    file(name, dscow.store_size(request.base->size(), {}));
    request.top = BlockDisk::open(io, top, BlockDisk::Open::writable);
    run(dscow.create(std::move(request)));
    return "dscow:" + top + ":" + top + "-base";
  }

  template <typename T>
  T run(Task<T> task) {
    return run_to_end(cowd->io, std::move(task));
  }
  int code_of(Task<> task) {
    try {
      run(std::move(task));
      return 0;
    } catch (const Error& error) {
      return error.code();
    }
  }
  void attach(const std::string& name, const std::string& spec,
              Durability durability = Durability::flush) {
    AttachRequest request;
    request.name = name;
    request.spec = spec;
    request.durability = durability;
    run(cowd->devices.attach(std::move(request)));
  }
  // Work that goes on by itself; `ended` gets its errno.
  void begin(Task<> task, std::optional<int>& ended) {
    asio::co_spawn(cowd->io, std::move(task), [&ended](std::exception_ptr error) {
      ended = 0;
      try {
        if (error) std::rethrow_exception(error);
      } catch (const Error& failure) {
        ended = failure.code();
      }
    });
  }
  bool until(const std::function<bool()>& is_so) {
    const auto end = std::chrono::steady_clock::now() + 20s;
    while (!is_so()) {
      if (std::chrono::steady_clock::now() > end) return false;
      cowd->io.restart();
      cowd->io.run_one_for(20ms);
    }
    return true;
  }
  std::string state(const std::string& name) {
    const json all = run(cowd->devices.list());
    for (const json& device : all["devices"])
      if (device["name"] == name) return device["state"];
    return "none";
  }

  std::string dir;
  std::unique_ptr<Cowd> cowd;
};

TEST_F(DeviceTest, ABackingThatHangsHoldsUpNoOtherDevice) {
  const std::string hung = file("hung");
  attach("hung", "raw:" + hung);
  attach("fine", "raw:" + file("fine"));
  kill_and_start();
  gate.hold(hung);
  const auto began = std::chrono::steady_clock::now();
  run(cowd->devices.reattach_all());
  EXPECT_LT(std::chrono::steady_clock::now() - began, 10s);
  EXPECT_EQ(state("fine"), "active");
  EXPECT_EQ(state("hung"), "recovering");
  attach("another", "raw:" + file("another"));
  EXPECT_EQ(state("another"), "active");
  EXPECT_EQ(code_of(cowd->devices.detach("hung")), EBUSY);
  gate.release();
  EXPECT_TRUE(until([&] { return cowd->events.after(0).back().type == "reattached"; }));
  EXPECT_EQ(state("hung"), "active");
  EXPECT_EQ(code_of(cowd->devices.detach("hung")), 0);
}

// What came while no cowd ran waits in its socket.
TEST_F(DeviceTest, ARequestThatIsFasterThanTheStartMeetsWhatIsInUse) {
  attach("disk", "raw:" + file("store"));
  kill_and_start();
  AttachRequest request;
  request.name = "other";
  request.spec = "raw:" + dir + "/store";
  std::optional<int> ended;
  auto attaching = [](DeviceManager* devices, AttachRequest asked) -> Task<> {
    co_await devices->attach(std::move(asked));
  };
  begin(attaching(&cowd->devices, std::move(request)), ended);
  for (int i = 0; i < 20; ++i) {
    cowd->io.restart();
    cowd->io.run_one_for(20ms);
  }
  run(cowd->devices.reattach_all());
  EXPECT_TRUE(until([&] { return ended.has_value(); }));
  EXPECT_EQ(ended, EBUSY);
  EXPECT_EQ(state("disk"), "active");
}

TEST_F(DeviceTest, AStoreIsInUseAlsoWhereItsBaseIsGone) {
  attach("disk", store("cow"));
  kill_and_start();
  fs::rename(dir + "/cow-base", dir + "/away");
  run(cowd->devices.reattach_all());
  EXPECT_EQ(state("disk"), "failed");
  EXPECT_THROW(attach("other", "raw:" + dir + "/cow"), Error);
  fs::rename(dir + "/away", dir + "/cow-base");
  EXPECT_TRUE(until([&] { return cowd->events.after(0).back().type == "reattached"; }));
  EXPECT_EQ(code_of(cowd->devices.detach("disk")), 0);
  attach("other", "raw:" + dir + "/cow");
}

TEST_F(DeviceTest, TheNameOfANoteThatIsBeingCleanedIsTaken) {
  const std::string path = file("old");
  attach("old", "raw:" + path);
  cowd.reset();
  fake_dm::clear();
  start();
  gate.hold(path);
  run(cowd->devices.reattach_all());
  EXPECT_THROW(attach("old", "raw:" + file("new")), Error);
  gate.release();
  EXPECT_TRUE(until([&] { return !fs::exists(dir + "/run/devices.d/old.json"); }));
  attach("old", "raw:" + dir + "/new");
  EXPECT_TRUE(fs::exists(dir + "/run/devices.d/old.json"));
}

TEST_F(DeviceTest, WhatWaitsFailsWhenItsDomainDiesThoughItsBackingHangs) {
  for (const bool orderly_first : {false, true}) {
    const std::string name = orderly_first ? "second" : "first";
    const std::string spec = store(name);
    attach(name, spec);
    kill_and_start();
    fake_dm::set_open(name, 1);
    gate.hold(dir + "/" + name);
    run(cowd->devices.reattach_all());
    std::optional<int> left, abandoned;
    if (orderly_first) {
      begin(cowd->devices.leave(name, Device::Leaving::orderly), left);
      cowd->io.restart();
      cowd->io.poll();
      EXPECT_FALSE(fake_dm::look(name).deferred);
      begin(cowd->devices.abandon(name), abandoned);
    } else {
      begin(cowd->devices.leave(name, Device::Leaving::dying), left);
    }
    EXPECT_TRUE(until([&] { return fake_dm::look(name).wiped; }));
    EXPECT_TRUE(fake_dm::look(name).deferred);
    EXPECT_FALSE(left);
    gate.release();
    EXPECT_TRUE(until([&] { return left.has_value(); }));
    EXPECT_EQ(left, 0);
    EXPECT_TRUE(until([&] { return state(name) == "none"; }));
    fake_dm::set_open(name, 0);
    // Its owner has let go of it.
    attach(name, spec);
    EXPECT_EQ(state(name), "active");
  }
}

TEST_F(DeviceTest, AStoreThatCouldNotBeServedIsReleasedWithItsDevice) {
  const std::string spec = store("cow");
  attach("disk", spec);
  kill_and_start();
  gate.refuse(dir + "/cow");
  run(cowd->devices.reattach_all());
  EXPECT_EQ(state("disk"), "failed");
  gate.release();
  run(cowd->devices.leave("disk", Device::Leaving::dying));
  EXPECT_TRUE(until([&] { return state("disk") == "none"; }));
  attach("disk", spec);
  EXPECT_EQ(state("disk"), "active");
}

// Killed when the store is ours already, and before there is a device: nobody could attach it again.
TEST_F(DeviceTest, AStoreIsReleasedThoughCowdWasKilledBeforeItsDeviceWasThere) {
  const std::string spec = store("cow");
  const std::string then = dir + "-then";
  AttachRequest request;
  request.name = "disk";
  request.spec = spec;
  request.wanted = [this, then] {  // asked when the image is open
    if (!fs::exists(then)) fs::copy(dir, then, fs::copy_options::recursive);
    return true;
  };
  run(cowd->devices.attach(std::move(request)));
  cowd.reset();
  fake_dm::clear();
  for (const char* part : {"/cow", "/run"}) {
    fs::remove_all(dir + part);
    fs::copy(then + part, dir + part, fs::copy_options::recursive);
  }
  fs::remove_all(then);
  start();
  run(cowd->devices.reattach_all());
  EXPECT_TRUE(until([&] { return fs::is_empty(dir + "/run/devices.d"); }));
  attach("disk", spec);
  EXPECT_EQ(state("disk"), "active");
}

// Its owner would stand in it until the host is rebooted.
TEST_F(DeviceTest, AStoreThatCouldNotBeClosedIsClosedBeforeItIsAttachedAgain) {
  const std::string spec = store("cow");
  attach("disk", spec);
  cowd.reset();
  fake_dm::clear();
  start();
  gate.refuse(dir + "/cow");
  run(cowd->devices.reattach_all());
  EXPECT_THROW(attach("disk", spec), Error);
  EXPECT_THROW(attach("other", spec), Error);
  EXPECT_TRUE(fs::exists(dir + "/run/devices.d/disk.json"));
  gate.release();
  attach("other", spec);
  EXPECT_EQ(state("other"), "active");
  EXPECT_FALSE(fs::exists(dir + "/run/devices.d/disk.json"));
}

TEST_F(DeviceTest, AStoreThatCouldNotBeClosedAtDetachIsClosedBeforeItIsAttachedAgain) {
  const std::string spec = store("cow");
  for (const bool restart : {false, true}) {
    attach("disk", spec);
    kill_and_start();
    gate.refuse(dir + "/cow");
    run(cowd->devices.reattach_all());
    EXPECT_EQ(state("disk"), "failed");
    EXPECT_EQ(code_of(cowd->devices.detach("disk")), EIO);
    EXPECT_FALSE(fake_dm::has("disk"));
    gate.release();
    if (restart) {
      kill_and_start();
      run(cowd->devices.reattach_all());
      EXPECT_TRUE(until([&] { return fs::is_empty(dir + "/run/devices.d"); }));
    }
    attach("disk", spec);
    EXPECT_EQ(state("disk"), "active");
    EXPECT_EQ(code_of(cowd->devices.detach("disk")), 0);
    EXPECT_TRUE(fs::is_empty(dir + "/run/devices.d"));
  }
}

// /run/cowd was emptied: the device's users wait until somebody says what it was.
TEST_F(DeviceTest, ADeviceWithoutANoteIsServedAgainByWhoAttachesIt) {
  const std::string spec = store("cow"), another = store("another");
  attach("disk", spec);
  fake_dm::set_open("disk", 1);
  cowd.reset();
  fs::remove_all(dir + "/run");
  start();
  run(cowd->devices.reattach_all());
  EXPECT_EQ(state("disk"), "none");
  EXPECT_THROW(attach("disk", another), Error);
  EXPECT_TRUE(fake_dm::has("disk"));
  EXPECT_TRUE(fs::is_empty(dir + "/run/devices.d"));
  attach("disk", spec);
  EXPECT_EQ(state("disk"), "active");
  kill_and_start();
  run(cowd->devices.reattach_all());
  EXPECT_EQ(state("disk"), "active");
  fake_dm::set_open("disk", 0);
  EXPECT_EQ(code_of(cowd->devices.detach("disk")), 0);
  attach("another", another);
}

TEST_F(DeviceTest, ASuspendedGuestsDiskIsKeptUntilItIsServed) {
  const std::string spec = store("cow");
  attach("disk", spec, Durability::transient);
  kill_and_start();
  gate.refuse(dir + "/cow");
  run(cowd->devices.reattach_all());
  fake_dm::set_open("disk", 1);
  EXPECT_EQ(code_of(cowd->devices.leave("disk", Device::Leaving::suspended)), EAGAIN);
  EXPECT_FALSE(fake_dm::look("disk").wiped);
  EXPECT_FALSE(fake_dm::look("disk").deferred);
  gate.release();
  EXPECT_TRUE(until([&] { return cowd->events.after(0).back().type == "reattached"; }));
  EXPECT_EQ(code_of(cowd->devices.leave("disk", Device::Leaving::suspended)), 0);
  // Durable; and killed before the last close.
  kill_and_start();
  run(cowd->devices.reattach_all());
  EXPECT_EQ(state("disk"), "active");
  EXPECT_EQ(code_of(cowd->devices.leave("disk", Device::Leaving::suspended)), 0);
  fake_dm::set_open("disk", 0);
  EXPECT_TRUE(until([&] { return state("disk") == "none"; }));
  attach("disk", spec, Durability::flush);
  EXPECT_EQ(state("disk"), "active");
}

TEST_F(DeviceTest, AnAttachThatNobodyWantsAnyMoreIsUndone) {
  const std::string spec = store("cow");
  gate.hold(dir + "/cow-base");
  auto wanted = std::make_shared<bool>(true);
  AttachRequest request;
  request.name = "disk";
  request.spec = spec;
  request.wanted = [wanted] { return *wanted; };
  std::optional<int> ended;
  auto attaching = [](DeviceManager* devices, AttachRequest asked) -> Task<> {
    co_await devices->attach(std::move(asked));
  };
  begin(attaching(&cowd->devices, std::move(request)), ended);
  cowd->io.restart();
  cowd->io.poll();
  *wanted = false;
  gate.release();
  EXPECT_TRUE(until([&] { return ended.has_value(); }));
  EXPECT_EQ(ended, ECANCELED);
  EXPECT_FALSE(fake_dm::has("disk"));
  EXPECT_TRUE(fs::is_empty(dir + "/run/devices.d"));
  attach("disk", spec);
  EXPECT_EQ(state("disk"), "active");
}

}  // namespace
}  // namespace cowd
