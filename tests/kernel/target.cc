// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/kernel/target.hh"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tests/kernel/rescue.hh"

namespace dmutest {

// ---------------------------------------------------------------- Target ---

Target::Target(uint64_t sectors, std::vector<Dest> dests, const Tune& tune) {
  static int count = 0;
  name_ = rescue::kPrefix + std::string("target-") + std::to_string(getpid()) + "-" + std::to_string(count++);
  dmu_error err{};
  if (with_spec(sectors, dests, tune, [&](dmu_spec& spec, dmu_error* e) {
        int r = dmu_create(&spec, nullptr, e);
        if (r) err = *e;
        return r;
      }))
    FAIL(err.text);
}

Target::~Target() { remove(); }

int Target::with_spec(uint64_t sectors, const std::vector<Dest>& dests, const Tune& tune,
                      const std::function<int(dmu_spec&, dmu_error*)>& what) {
  std::vector<dmu_dest> list;
  for (const Dest& d : dests) list.push_back({d.disk->path().c_str(), d.read_only ? DMU_READ_ONLY : 0U, 0});
  dmu_spec spec{};
  dmu_error err{};
  spec.size = sizeof spec;
  spec.name = spec.key = spec.uuid = name_.c_str();
  spec.sectors = sectors;
  spec.dests = list.data();
  spec.num_dests = static_cast<uint32_t>(list.size());
  spec.flags = DMU_NO_UDEV_SCAN;
  if (tune) tune(spec);
  return what(spec, &err);
}

dmu_status Target::status() const {
  dmu_status s{};
  dmu_error err{};
  s.size = sizeof s;
  if (dmu_get_status(name_.c_str(), &s, &err)) FAIL(err.text);
  return s;
}

dmu_info Target::info() const {
  dmu_info i{};
  dmu_error err{};
  i.size = sizeof i;
  if (dmu_get_info(name_.c_str(), &i, &err)) FAIL(err.text);
  return i;
}

int Target::suspend(uint32_t flags) { return dmu_suspend(name_.c_str(), flags, nullptr); }
int Target::resume() { return dmu_resume(name_.c_str(), DMU_NO_UDEV_SCAN, nullptr); }
int Target::remove(uint32_t flags) { return dmu_remove(name_.c_str(), flags | DMU_NO_UDEV_SCAN, nullptr); }

int Target::reload(uint64_t sectors, std::vector<Dest> dests, uint32_t flags, const Tune& tune) {
  return with_spec(sectors, dests, tune, [flags](dmu_spec& spec, dmu_error* err) { return dmu_reload(&spec, flags, err); });
}

int Target::load(uint64_t sectors, std::vector<Dest> dests, const Tune& tune) {
  return with_spec(sectors, dests, tune, [](dmu_spec& spec, dmu_error* err) { return dmu_load(&spec, err); });
}

// --------------------------------------------------------------- Channel ---

namespace {

std::string text_of(const dmu_msg& msg) {
  char line[512];
  dmu_msg_format(&msg, line, sizeof line);
  return line;
}

}  // namespace

Channel::Channel(const Target& target, bool raw) {
  dmu_error err{};
  if (dmu_channel_open(target.name().c_str(), &channel_, &err)) FAIL(err.text);
  gen = attach().gen;
  if (raw) return;
  for (;;) {
    std::optional<dmu_msg> msg = next(kSoon);
    if (!msg) FAIL("no REPLAY_DONE");
    if (msg->type == DMU_MSG_REPLAY_DONE) return;
    if (msg->type != DMU_MSG_PROMOTED) FAIL("before REPLAY_DONE came " + text_of(*msg));
    replayed.push_back(*msg);
  }
}

void Channel::close() {
  dmu_channel_close(channel_);
  channel_ = nullptr;
}

std::optional<dmu_msg> Channel::next(Ms limit) {
  auto end = Clock::now() + limit;
  while (unread_.empty()) {
    dmu_msg in[64];
    ssize_t n = dmu_channel_receive(channel_, in, 64);
    if (n < 0 && n != -EAGAIN) FAIL("read of the channel: " + std::string(strerror(static_cast<int>(-n))));
    for (ssize_t i = 0; i < n; i++) unread_.push_back(in[i]);
    auto left = std::chrono::duration_cast<Ms>(end - Clock::now()).count();
    if (n > 0) break;
    if (left <= 0) return std::nullopt;
    pollfd p{fd(), POLLIN, 0};
    poll(&p, 1, static_cast<int>(left));
  }
  dmu_msg msg = unread_.front();
  unread_.pop_front();
  if (msg.type == DMU_MSG_PROMOTED && msg.seq > seq) seq = msg.seq;
  if (msg.type == DMU_MSG_FAULT || msg.type == DMU_MSG_INVALIDATED || msg.type == DMU_MSG_REPLAY_DONE) gen = msg.gen;
  return msg;
}

dmu_msg Channel::expect(uint32_t type, Ms limit) {
  auto end = Clock::now() + limit;
  for (;;) {
    std::optional<dmu_msg> msg = next(std::max(Ms(0), std::chrono::duration_cast<Ms>(end - Clock::now())));
    if (!msg) FAIL("no message of type " + std::to_string(type) + " came");
    if (msg->type == type) return *msg;
    if (msg->type != DMU_MSG_PROMOTED) FAIL("instead of type " + std::to_string(type) + " came " + text_of(*msg));
    promoted.push_back(*msg);
  }
}

void Channel::expect_silence(Ms limit) {
  auto end = Clock::now() + limit;
  while (Clock::now() < end) {
    std::optional<dmu_msg> msg = next(std::max(Ms(0), std::chrono::duration_cast<Ms>(end - Clock::now())));
    if (msg && msg->type != DMU_MSG_PROMOTED) FAIL("unexpected: " + text_of(*msg));
    if (msg) promoted.push_back(*msg);
  }
}

void Channel::expect_promoted(uint64_t sectors, Ms limit) {
  uint64_t told = 0;
  for (;;) {
    while (!promoted.empty()) {
      told += promoted.front().len;
      promoted.pop_front();
    }
    if (told >= sectors) break;
    promoted.push_back(expect(DMU_MSG_PROMOTED, limit));
  }
  CHECK_EQ(told, sectors);
}

int Channel::try_send(const dmu_msg& msg) {
  int result = 0;
  dmu_channel_send(channel_, &msg, 1, &result);
  return result;
}

void Channel::send(const dmu_msg& msg) {
  int r = try_send(msg);
  if (r) FAIL(text_of(msg) + " gave " + strerror(-r));
}

void Channel::invalidate(uint64_t sector, uint64_t len) {
  uint64_t id = next_id_++;
  send(dmu_msg_invalidate(id, sector, len));
  CHECK_EQ(expect(DMU_MSG_INVALIDATED).id, id);
}

// ------------------------------------------------------------------- Rig ---

dmu_msg map_plain(uint64_t id, uint64_t sector, uint64_t len, uint32_t dest, uint64_t at) {
  dmu_msg map = dmu_msg_map(id, sector, len);
  dmu_map_read(&map, dest, at);
  dmu_map_write(&map, dest, at);
  return map;
}

dmu_msg map_overlay(uint64_t id, uint64_t sectors, uint32_t read_dest, uint32_t granule, uint32_t flags) {
  dmu_msg map = dmu_msg_map(id, 0, sectors);
  dmu_map_read(&map, read_dest, 0);
  dmu_map_write(&map, 1, 0);
  dmu_map_overlay(&map, granule);
  map.flags |= flags;
  return map;
}

Rig::Rig(const Target::Tune& tune, uint64_t size) : Rig(nullptr, nullptr, tune, size) {}

Rig::Rig(Disk* base_disk, Disk* cow_disk, const Target::Tune& tune, uint64_t size) : base(base_disk), cow(cow_disk), sectors(size) {
  if (!base) {
    base_ram = std::make_unique<Ram>();
    base = base_ram.get();
  }
  if (!cow) {
    cow_ram = std::make_unique<Ram>();
    cow = cow_ram.get();
  }
  fill_disk(base->path(), 0, sectors, kBase);
  fill_disk(cow->path(), 0, sectors, kCow);
  target = std::make_unique<Target>(sectors, std::vector<Dest>{{base, true}, {cow, false}}, tune);
  file = std::make_unique<File>(target->path());
}

void Rig::push_overlay(Channel& channel, uint32_t granule, uint32_t flags, uint32_t read_dest) {
  dmu_msg map = map_overlay(0, sectors, read_dest, granule, flags);
  dmu_map_push(&map, channel.gen);
  channel.send(map);
  uint64_t leaf = static_cast<uint64_t>(granule) * DMU_LEAF_GRANULES;
  for (uint64_t at = 0; at < sectors; at += leaf)
    channel.send(dmu_msg_bitmap(0, channel.gen, at, std::min(leaf, sectors - at), nullptr, 0));
}

uint64_t Rig::in_flight() const { return Path(target->path()).stat(kStatInFlight); }

void Rig::promote(Channel& channel, uint64_t sector, uint64_t len, Seed seed) {
  CHECK_EQ(file->write(sector, len, seed).result(), static_cast<long>(len * 512));
  channel.expect_promoted(len);
}

}  // namespace dmutest
