// SPDX-License-Identifier: GPL-2.0-or-later
// The device under test and the daemon's side of its channel, driven by the case.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dmu.h"
#include "tests/kernel/case.hh"
#include "tests/kernel/disks.hh"
#include "tests/kernel/io.hh"

namespace dmutest {

struct Dest {
  const Disk* disk;
  bool read_only = false;
};

// A device of the userspace target; its name is its key too.
class Target {
 public:
  using Tune = std::function<void(dmu_spec&)>;
  // tune: changes the specification before the device is made.
  Target(uint64_t sectors, std::vector<Dest> dests, const Tune& tune = {});
  ~Target();
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  const std::string& name() const { return name_; }
  std::string path() const { return "/dev/mapper/" + name_; }
  dmu_status status() const;
  dmu_info info() const;
  // A negative errno, or 0.
  int suspend(uint32_t flags = 0);
  int resume();
  int remove(uint32_t flags = 0);
  int reload(uint64_t sectors, std::vector<Dest> dests, uint32_t flags, const Tune& tune = {});
  int load(uint64_t sectors, std::vector<Dest> dests, const Tune& tune = {});

 private:
  int with_spec(uint64_t sectors, const std::vector<Dest>& dests, const Tune& tune, const std::function<int(dmu_spec&, dmu_error*)>& what);
  std::string name_;
};

// The open channel of a Target.
class Channel {
 public:
  // Waits until REPLAY_DONE has been read, unless `raw`; what came before is in replayed.
  explicit Channel(const Target& target, bool raw = false);
  ~Channel() { close(); }
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  void close();
  int fd() const { return dmu_channel_fd(channel_); }
  const dmu_attach& attach() const { return *dmu_channel_attach(channel_); }

  // The next message, if there is one within `limit`.
  std::optional<dmu_msg> next(Ms limit);
  // The next of this type; PROMOTED that come first are kept in promoted, others fail the case.
  dmu_msg expect(uint32_t type, Ms limit = kSoon);
  // Nothing but PROMOTED comes for kNotYet.
  void expect_silence(Ms limit = kNotYet);
  // Reads PROMOTED until `granules`-worth of sectors have been promoted since the last call.
  void expect_promoted(uint64_t sectors, Ms limit = kSoon);

  // 0 or a negative errno.
  int try_send(const dmu_msg& msg);
  void send(const dmu_msg& msg);
  // Drops [sector, sector + len) and waits for INVALIDATED.
  void invalidate(uint64_t sector, uint64_t len);

  std::vector<dmu_msg> replayed;
  std::deque<dmu_msg> promoted;
  uint64_t seq = 0;  // the highest that was read
  uint64_t gen = 0;  // the last that was read

 private:
  dmu_channel* channel_ = nullptr;
  std::deque<dmu_msg> unread_;
  uint64_t next_id_ = 1;
};

// Messages that most cases need.
dmu_msg map_plain(uint64_t id, uint64_t sector, uint64_t len, uint32_t dest, uint64_t at);
dmu_msg map_overlay(uint64_t id, uint64_t sectors, uint32_t read_dest, uint32_t granule, uint32_t flags = 0);

constexpr Seed kBase = 1, kCow = 2, kNew = 3;
constexpr uint32_t kGranule = 8;  // sectors
constexpr uint64_t kSize = 16384;

// What most cases begin with: a device over a base (destination 0, ro, filled with
// kBase) and a cow disk (destination 1, filled with kCow).
struct Rig {
  explicit Rig(const Target::Tune& tune = {}, uint64_t sectors = kSize);
  // The same over other disks; null: a RAM disk. They are filled too.
  Rig(Disk* base, Disk* cow, const Target::Tune& tune = {}, uint64_t sectors = kSize);

  // Makes the whole device one overlay with no granule promoted.
  void push_overlay(Channel& channel, uint32_t granule = kGranule, uint32_t flags = 0, uint32_t read_dest = 0);
  // Writes [sector, sector + len) with `seed`, and waits for it and its PROMOTED.
  void promote(Channel& channel, uint64_t sector, uint64_t len, Seed seed);

  // Bios of the device that are mapped or parked and not complete.
  uint64_t in_flight() const;

  std::unique_ptr<Ram> base_ram, cow_ram;
  Disk* base;
  Disk* cow;
  std::unique_ptr<Target> target;
  std::unique_ptr<File> file;  // of the device
  uint64_t sectors;
};

}  // namespace dmutest
