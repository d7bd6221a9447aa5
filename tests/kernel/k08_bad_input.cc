// SPDX-License-Identifier: GPL-2.0-or-later
// K8: every number from userspace is checked; a wrong message is answered with an
// errno, the device stays as it was, and the kernel's log stays clean.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>

#include "tests/kernel/target.hh"

using namespace dmutest;

namespace {

dmu_msg pushed(Channel& channel, uint64_t sector, uint64_t len) {
  dmu_msg map = map_plain(0, sector, len, 1, sector);
  dmu_map_push(&map, channel.gen);
  return map;
}

// The device is still what it was: it faults, maps and promotes.
void check_alive(Rig& rig, Channel& channel) {
  channel.invalidate(0, kSize);
  rig.push_overlay(channel);
  rig.promote(channel, 0, 8, kNew);
  CHECK_READS(*rig.file, 0, 8, kNew);
  CHECK_READS(*rig.file, 8, 8, kBase);
}

std::string kernel_log() { return run({"dmesg"}); }

}  // namespace

CASE(k08_wrong_maps) {
  Rig rig;
  Channel channel(*rig.target);
  struct {
    const char* what;
    std::function<void(dmu_msg&)> spoil;
    int error;
  } wrong[] = {
      {"no length", [](dmu_msg& m) { m.len = 0; }, -EINVAL},
      {"begins beyond the device", [](dmu_msg& m) { m.sector = kSize; }, -ERANGE},
      {"ends beyond the device", [](dmu_msg& m) { m.len = kSize + 8; m.read_sector = m.write_sector = 0; }, -ERANGE},
      {"wraps around", [](dmu_msg& m) { m.len = ~0ULL - 8; }, -ERANGE},
      {"begins nowhere", [](dmu_msg& m) { m.sector = ~0ULL - 7; }, -ERANGE},
      {"read side beyond its destination", [](dmu_msg& m) { m.read_sector = Ram::kSectors; }, -ERANGE},
      {"write side beyond its destination", [](dmu_msg& m) { m.write_sector = Ram::kSectors - 4; }, -ERANGE},
      {"read side wraps around", [](dmu_msg& m) { m.read_sector = ~0ULL - 3; }, -ERANGE},
      {"no such destination to read", [](dmu_msg& m) { m.read_dest = 2; }, -ENXIO},
      {"no such destination to write", [](dmu_msg& m) { m.write_dest = 64; }, -ENXIO},
      {"writes zeroes", [](dmu_msg& m) { m.write_dest = DMU_DEST_ZERO; m.write_sector = 0; }, -EINVAL},
      {"write side on a read-only destination", [](dmu_msg& m) { m.write_dest = 0; }, -EROFS},
      {"another generation", [](dmu_msg& m) { m.gen += 1; }, -ESTALE},
      {"flags that do not exist", [](dmu_msg& m) { m.flags = 1U << 30; }, -EINVAL},
      {"flags of another message", [](dmu_msg& m) { m.flags = DMU_F_ALL; }, -EINVAL},
      {"a reserved field", [](dmu_msg& m) { m.reserved = 1; }, -EINVAL},
      {"a field of another message: seq", [](dmu_msg& m) { m.seq = 1; }, -EINVAL},
      {"a field of another message: error", [](dmu_msg& m) { m.error = 5; }, -EINVAL},
      {"a field of another message: data", [](dmu_msg& m) { m.data = 4096; }, -EINVAL},
      {"a field of another message: data_len", [](dmu_msg& m) { m.data_len = 512; }, -EINVAL},
      {"a granule without an overlay", [](dmu_msg& m) { m.granule = 8; }, -EINVAL},
      {"a sector of nothing", [](dmu_msg& m) { m.read_dest = DMU_DEST_NONE; m.read_sector = 8; }, -EINVAL},
      {"an overlay without a granule", [](dmu_msg& m) { m.flags = DMU_F_OVERLAY; }, -EINVAL},
      {"a granule that is no power of two", [](dmu_msg& m) { m.flags = DMU_F_OVERLAY; m.granule = 24; }, -EINVAL},
      {"a huge granule", [](dmu_msg& m) { m.flags = DMU_F_OVERLAY; m.granule = 1U << 31; }, -EINVAL},
      {"an overlay without a write side", [](dmu_msg& m) { m.flags = DMU_F_OVERLAY; m.granule = 8; m.write_dest = DMU_DEST_NONE; m.write_sector = 0; }, -EINVAL},
      {"copy first and overlay", [](dmu_msg& m) { m.flags = DMU_F_OVERLAY | DMU_F_COPY_FIRST; m.granule = 8; }, -EINVAL},
      {"copy first of nothing", [](dmu_msg& m) { m.flags = DMU_F_COPY_FIRST; m.read_dest = DMU_DEST_NONE; m.read_sector = 0; }, -EINVAL},
  };
  for (auto& w : wrong) {
    dmu_msg map = pushed(channel, 0, 64);
    w.spoil(map);
    int r = channel.try_send(map);
    if (r != w.error) FAIL(std::string(w.what) + " gave " + std::to_string(r) + " instead of " + std::to_string(w.error));
  }
  CHECK_EQ(rig.target->status().extents, 0U);
  check_alive(rig, channel);
}

CASE(k08_single_blocks_can_be_mapped) {  // of a larger block: k13_larger_logical_blocks
  Rig rig;
  Channel channel(*rig.target);
  CHECK_EQ(channel.attach().logical_block_size, 512U);
  channel.send(pushed(channel, 1, 1));
  channel.send(pushed(channel, 3, 7));
  CHECK_READS(*rig.file, 3, 7, kCow);
}

CASE(k08_wrong_bitmaps) {
  Rig rig;
  Channel channel(*rig.target);
  static uint8_t bits[DMU_LEAF_GRANULES / 8 + 4096];
  CHECK(channel.try_send(dmu_msg_bitmap(0, channel.gen, 0, kSize, bits, 8)) < 0);  // no overlay is there
  rig.push_overlay(channel);
  auto send = [&](uint64_t sector, uint64_t len, const void* data, uint32_t bytes) {
    return channel.try_send(dmu_msg_bitmap(0, channel.gen, sector, len, data, bytes));
  };
  constexpr uint32_t kBytes = kSize / kGranule / 8;
  CHECK_EQ(send(0, kSize, bits, kBytes), 0);
  CHECK(send(8, kSize - 8, bits, kBytes) < 0);          // not a whole leaf
  CHECK(send(0, 8, bits, 1) < 0);
  CHECK(send(kSize, kSize, bits, kBytes) < 0);
  CHECK(send(0, kSize + 8, bits, kBytes) < 0);
  CHECK(send(0, ~0ULL, bits, kBytes) < 0);
  CHECK(send(0, kSize, bits, sizeof bits) < 0);         // more than a leaf can have
  CHECK(send(0, kSize, bits, 0xffffffffU) < 0);
  CHECK_EQ(send(0, kSize, nullptr, kBytes), -EFAULT);
  CHECK_EQ(send(0, kSize, reinterpret_cast<void*>(~0ULL << 16), kBytes), -EFAULT);
  dmu_msg all = dmu_msg_bitmap_all(0, channel.gen, 0, kSize);
  all.flags |= DMU_F_SYNC;
  CHECK_EQ(channel.try_send(all), -EINVAL);
  dmu_msg both = dmu_msg_bitmap(0, channel.gen, 0, kSize, bits, kBytes);
  both.flags = DMU_F_ALL;
  CHECK_EQ(channel.try_send(both), -EINVAL);
  dmu_msg stale = dmu_msg_bitmap(0, channel.gen + 1, 0, kSize, bits, kBytes);
  CHECK_EQ(channel.try_send(stale), -ESTALE);
  CHECK_READS(*rig.file, 0, kSize, kBase);  // none of it left a bit
  check_alive(rig, channel);
}

CASE(k08_pushed_bits_are_ored) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  rig.promote(channel, 0, 8, kNew);
  channel.send(dmu_msg_committed(channel.seq));
  uint8_t bits[kSize / kGranule / 8] = {0x04};
  channel.send(dmu_msg_bitmap(0, channel.gen, 0, kSize, bits, sizeof bits));
  CHECK_READS(*rig.file, 0, 8, kNew);
  CHECK_READS(*rig.file, 8, 8, kBase);
  CHECK_READS(*rig.file, 16, 8, kCow);
  channel.send(dmu_msg_bitmap(0, channel.gen, 0, kSize, nullptr, 0));
  CHECK_READS(*rig.file, 0, 8, kNew);
  CHECK_READS(*rig.file, 16, 8, kCow);
}

CASE(k08_pushes_fill_holes_only) {
  Rig rig;
  Channel channel(*rig.target);
  channel.send(pushed(channel, 64, 64));
  dmu_msg over = map_plain(0, 0, 256, 0, 0);
  over.write_dest = DMU_DEST_NONE;
  over.write_sector = 0;
  dmu_map_push(&over, channel.gen);
  channel.send(over);
  CHECK_READS(*rig.file, 0, 64, kBase);
  CHECK_READS(*rig.file, 64, 64, kCow);
  CHECK_READS(*rig.file, 128, 128, kBase);
  dmu_msg overlay = map_overlay(0, kSize, 0, kGranule);
  dmu_map_push(&overlay, channel.gen);
  CHECK_EQ(channel.try_send(overlay), -EEXIST);
  uint64_t gen = channel.gen;
  channel.invalidate(0, kSize);
  CHECK(channel.gen != gen);
  dmu_msg late = pushed(channel, 0, 64);
  late.gen = gen;
  CHECK_EQ(channel.try_send(late), -ESTALE);
}

CASE(k08_answers_do_not_cut_overlays) {
  Rig rig;
  Channel channel(*rig.target);
  dmu_msg overlay = dmu_msg_map(0, 1024, 1024);
  dmu_map_read(&overlay, 0, 1024);
  dmu_map_write(&overlay, 1, 1024);
  dmu_map_overlay(&overlay, kGranule);
  dmu_map_push(&overlay, channel.gen);
  channel.send(overlay);
  Io io = rig.file->read(0, 8);
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  channel.send(map_plain(fault.id, 0, 1032, 1, 0));  // fills what is free before it
  CHECK_EQ(io.result(), 8 * 512);
  Io inside = rig.file->read(1024, 8);
  dmu_msg leaf = channel.expect(DMU_MSG_FAULT);  // still an overlay, and whole
  CHECK(leaf.flags & DMU_F_LEAF);
  CHECK_EQ(leaf.sector, 1024U);
  CHECK_EQ(leaf.len, 1024U);
  channel.send(dmu_msg_bitmap(leaf.id, 0, 1024, 1024, nullptr, 0));
  CHECK_EQ(inside.result(), 8 * 512);
  Io behind = rig.file->read(2048, 8);
  dmu_msg other = channel.expect(DMU_MSG_FAULT);
  CHECK_EQ(channel.try_send(map_overlay(other.id, kSize, 0, kGranule)), -EBUSY);
  CHECK_EQ(behind.result(), -EIO);
  CHECK_READS(*rig.file, 1024, 1024, kBase);
}

CASE(k08_wrong_ids_and_types) {
  Rig rig;
  Channel channel(*rig.target);
  for (uint64_t id : {1ULL, 77ULL, ~0ULL}) {
    CHECK_EQ(channel.try_send(map_plain(id, 0, 64, 1, 0)), -ENOENT);
    CHECK_EQ(channel.try_send(dmu_msg_ack(id)), -ENOENT);
    CHECK_EQ(channel.try_send(dmu_msg_fail(id, 0)), -ENOENT);
    CHECK_EQ(channel.try_send(dmu_msg_retry(id)), -ENOENT);
    CHECK_EQ(channel.try_send(dmu_msg_bitmap(id, 0, 0, kSize, nullptr, 0)), -ENOENT);
  }
  for (uint32_t type : {0U, 1U, 9U, 31U, 40U, 77U, ~0U}) CHECK_EQ(channel.try_send(dmu_msg_make(type, 1)), -EINVAL);
  CHECK_EQ(channel.try_send(dmu_msg_invalidate(0, 0, 64)), -EINVAL);
  CHECK(channel.try_send(dmu_msg_invalidate(1, 0, 0)) < 0);
  CHECK(channel.try_send(dmu_msg_invalidate(1, kSize, 8)) < 0);
  CHECK(channel.try_send(dmu_msg_invalidate(1, 8, ~0ULL - 4)) < 0);
  CHECK_EQ(channel.try_send(dmu_msg_ack(0)), -ENOENT);
  check_alive(rig, channel);
}

CASE(k08_answers_of_the_wrong_kind) {
  Rig rig([](dmu_spec& spec) { spec.discard_granularity = 4096; });
  Channel channel(*rig.target);
  // An ACK is no answer to a FAULT, DATA none to a write, BITMAP none to a plain FAULT.
  static uint8_t bytes[4096];
  struct {
    std::function<Io()> start;
    uint32_t asks;
    std::function<dmu_msg(const dmu_msg&)> answer;
  } wrong[] = {
      {[&] { return rig.file->read(0, 8); }, DMU_MSG_FAULT, [](const dmu_msg& m) { return dmu_msg_ack(m.id); }},
      {[&] { return rig.file->write(0, 8, kNew); }, DMU_MSG_FAULT, [](const dmu_msg& m) { return dmu_msg_data(m.id, 0, bytes, 4096); }},
      {[&] { return rig.file->read(0, 8); }, DMU_MSG_FAULT, [](const dmu_msg& m) { return dmu_msg_bitmap(m.id, 0, 0, kSize, nullptr, 0); }},
      {[&] { return rig.file->read(0, 8); }, DMU_MSG_FAULT, [](const dmu_msg& m) { return dmu_msg_retry(m.id); }},
      {[&] { return rig.file->discard(0, 64); }, DMU_MSG_DISCARD, [](const dmu_msg& m) { return dmu_msg_data(m.id, 0, bytes, 4096); }},
  };
  for (auto& w : wrong) {
    Io io = w.start();
    dmu_msg asked = channel.expect(w.asks);
    CHECK(channel.try_send(w.answer(asked)) < 0);
    int r = channel.try_send(dmu_msg_fail(asked.id, 0));  // completed already, or still open
    CHECK(r == 0 || r == -ENOENT);
    CHECK(io.result() < 0);
  }
  check_alive(rig, channel);
}

CASE(k08_wrong_data) {
  Rig rig;
  Channel channel(*rig.target);
  static uint8_t bytes[4096];
  std::function<void(dmu_msg&)> wrong[] = {
      [](dmu_msg& m) { m.data_len = 100; },
      [](dmu_msg& m) { m.data_len = 0; m.len = 0; },
      [](dmu_msg& m) { m.data_len = DMU_DATA_MAX + 512; m.len = m.data_len / 512; },
      [](dmu_msg& m) { m.data_len = 0xfffffe00U; m.len = m.data_len / 512; },
      [](dmu_msg& m) { m.len = 4; },
      [](dmu_msg& m) { m.sector = kSize; },
      [](dmu_msg& m) { m.data = 0; },
      [](dmu_msg& m) { m.data = ~0ULL << 12; },
  };
  for (auto& spoil : wrong) {
    Io io = rig.file->read(0, 8);
    dmu_msg data = dmu_msg_data(channel.expect(DMU_MSG_FAULT).id, 0, bytes, 4096);
    spoil(data);
    CHECK(channel.try_send(data) < 0);
    int r = channel.try_send(dmu_msg_fail(data.id, 0));
    CHECK(r == 0 || r == -ENOENT);
    CHECK_EQ(io.result(), -EIO);
  }
}

// A destination that goes while the table names it.
CASE(k08_dead_destination) {
  Scsi dies({"dev_size_mb=16", "delay=0"});
  Rig rig(nullptr, &dies);
  Channel channel(*rig.target);
  channel.send([&] {
    dmu_msg map = map_plain(0, 0, 64, 1, 0);
    dmu_map_push(&map, channel.gen);
    return map;
  }());
  CHECK_EQ(rig.file->write(0, 8, kNew).result(), 8 * 512);
  dies.pull();
  CHECK(rig.file->write(0, 8, kNew).result() < 0);
  Io write = rig.file->write(128, 8, kNew);
  channel.send(map_plain(channel.expect(DMU_MSG_FAULT).id, 128, 8, 1, 128));
  CHECK(write.result() < 0);
  Io read = rig.file->read(4096, 8);
  dmu_msg map = dmu_msg_map(channel.expect(DMU_MSG_FAULT).id, 4096, 64);
  dmu_map_read(&map, 0, 4096);
  channel.send(map);
  CHECK_EQ(read.result(), 8 * 512);
  CHECK_READS(*rig.file, 4096, 64, kBase);
  CHECK(rig.file->sync().result() < 0);
}

CASE(k08_short_and_odd_calls) {
  Rig rig;
  Channel channel(*rig.target);
  char buf[4 * sizeof(dmu_msg)] = {};
  for (size_t bytes : {size_t{1}, sizeof(dmu_msg) - 1, sizeof(dmu_msg) + 1, 2 * sizeof(dmu_msg) - 8}) {
    CHECK_EQ(write(channel.fd(), buf, bytes), -1);
    CHECK_EQ(errno, EINVAL);
  }
  CHECK_EQ(read(channel.fd(), buf, sizeof(dmu_msg) - 1), -1);
  CHECK_EQ(errno, EINVAL);
  CHECK_EQ(read(channel.fd(), buf, sizeof buf), -1);
  CHECK_EQ(errno, EAGAIN);
  void* volatile nowhere = nullptr;
  CHECK_EQ(write(channel.fd(), nowhere, sizeof(dmu_msg)), -1);
  CHECK_EQ(errno, EFAULT);
  Io io = rig.file->read(0, 8);
  EVENTUALLY(rig.target->status().bios_parked == 1);
  CHECK_EQ(read(channel.fd(), nowhere, sizeof(dmu_msg)), -1);  // loses no message
  CHECK_EQ(errno, EFAULT);
  dmu_msg fault{};
  memset(buf, 0x55, sizeof buf);
  CHECK_EQ(read(channel.fd(), buf, sizeof(dmu_msg) + 40), static_cast<ssize_t>(sizeof(dmu_msg)));
  for (size_t i = sizeof(dmu_msg); i < sizeof buf; i++) CHECK(buf[i] == 0x55);  // a partial slot is left alone
  memcpy(&fault, buf, sizeof fault);
  CHECK_EQ(fault.reserved, 0U);
  channel.send(map_plain(fault.id, 0, kSize, 1, 0));
  CHECK_EQ(io.result(), 8 * 512);
}

CASE(k08_write_takes_those_before_a_wrong_one) {
  Rig rig;
  Channel channel(*rig.target);
  dmu_msg batch[4] = {pushed(channel, 0, 8), pushed(channel, 8, 8), dmu_msg_ack(99), pushed(channel, 16, 8)};
  CHECK_EQ(write(channel.fd(), batch, sizeof batch), static_cast<ssize_t>(2 * sizeof(dmu_msg)));
  CHECK_EQ(write(channel.fd(), batch + 2, 2 * sizeof(dmu_msg)), -1);
  CHECK_EQ(errno, ENOENT);
  CHECK_EQ(write(channel.fd(), batch + 3, sizeof(dmu_msg)), static_cast<ssize_t>(sizeof(dmu_msg)));
  CHECK_READS(*rig.file, 0, 24, kCow);
}

CASE(k08_wrong_attaches) {
  Rig rig;
  auto attach = [&](const std::function<void(dmu_attach&)>& spoil) {
    dmu_attach a{};
    a.size = sizeof a;
    a.abi_major = DMU_ABI_MAJOR;
    a.abi_minor = DMU_ABI_MINOR;
    strncpy(a.key, rig.target->name().c_str(), sizeof a.key - 1);
    spoil(a);
    int fd = open("/dev/" DMU_DEVICE_NAME, O_RDWR | O_CLOEXEC);
    CHECK(fd >= 0);
    char buf[sizeof(dmu_msg)];
    CHECK(read(fd, buf, sizeof buf) < 0);  // bound to nothing yet
    CHECK(write(fd, buf, sizeof buf) < 0);
    int r = ioctl(fd, DMU_ATTACH, &a) ? -errno : 0;
    close(fd);
    return r;
  };
  CHECK_EQ(attach([](dmu_attach& a) { a.size = 8; }), -EINVAL);
  CHECK_EQ(attach([](dmu_attach& a) { a.abi_major = 2; }), -EPROTO);
  CHECK_EQ(attach([](dmu_attach& a) { a.flags = 6; }), -EINVAL);
  CHECK_EQ(attach([](dmu_attach& a) { a.reserved[3] = 1; }), -EINVAL);
  CHECK_EQ(attach([](dmu_attach& a) { memset(a.key, 'k', sizeof a.key); }), -EINVAL);  // no end
  CHECK_EQ(attach([](dmu_attach& a) { a.key[0] = 0; }), -ENODEV);
  CHECK_EQ(attach([](dmu_attach& a) { strcpy(a.key, "nobody"); }), -ENODEV);
  CHECK_EQ(attach([](dmu_attach& a) { a.flags = DMU_ATTACH_BY_DEV; a.key[0] = 0; a.dev_major = 1; a.dev_minor = 3; }), -ENODEV);
  CHECK_EQ(attach([](dmu_attach& a) { a.abi_minor = 99; }), 0);
  int fd = open("/dev/" DMU_DEVICE_NAME, O_RDWR | O_CLOEXEC);
  CHECK_EQ(ioctl(fd, DMU_ATTACH, nullptr), -1);
  CHECK_EQ(errno, EFAULT);
  CHECK_EQ(ioctl(fd, 0xde41, nullptr), -1);
  CHECK_EQ(errno, ENOTTY);
  close(fd);
}

CASE(k08_more_overlays_than_extents_allowed) {
  Rig rig([](dmu_spec& spec) { spec.max_extents = 16; });
  Channel channel(*rig.target);
  int r = 0;
  for (uint64_t i = 0; i < 64 && !r; i++) {
    dmu_msg overlay = dmu_msg_map(0, i * 64, 64);
    dmu_map_read(&overlay, 0, i * 64);
    dmu_map_write(&overlay, 1, i * 64);
    dmu_map_overlay(&overlay, kGranule);
    dmu_map_push(&overlay, channel.gen);
    r = channel.try_send(overlay);
  }
  CHECK_EQ(r, -E2BIG);
  channel.invalidate(0, kSize);
}

// Random messages, most of them almost right, for twenty seconds, with I/O going on.
CASE_WITHIN(k08_fuzz, 90'000) {
  Rig rig([](dmu_spec& spec) { spec.max_extents = 256; spec.max_uncommitted = 1024; spec.discard_granularity = 4096; spec.write_zeroes = 1; });
  auto owner = std::make_unique<Channel>(*rig.target);
  Channel& channel = *owner;
  std::string log = kernel_log();
  std::atomic<bool> stop{false};
  std::vector<Io> load;
  for (unsigned w = 0; w < 4; w++)
    load.emplace_back([&, w] {
      std::minstd_rand random(w + 100);
      while (!stop) {
        uint64_t at = random() % (kSize - 128), len = 1 + random() % 128;
        Buffer buf(len);
        switch (random() % 6) {  // errors are what the answers make them
          case 0: rig.file->sync_now(); break;
          case 1: rig.file->discard_now(at, len); break;
          case 2: rig.file->read_now(at, buf); break;
          case 3: rig.file->zeroout_now(at, len); break;
          default: rig.file->write_now(at, len, kNew);
        }
      }
      return 0L;
    });
  std::minstd_rand random(20);
  static uint8_t bytes[65536];
  std::vector<uint64_t> ids;
  auto number = [&](uint64_t limit) -> uint64_t {
    switch (random() % 16) {
      case 0: return ~0ULL - random() % 16;
      case 1: return limit + random() % 16;
      case 2: return static_cast<uint64_t>(random()) << 32;
      case 3: return 0;
      default: return random() % (limit + 1);
    }
  };
  auto message = [&] {
    dmu_msg m = dmu_msg_make(random() % 12 ? 32 + random() % 8 : random() % 64, 0);
    m.id = ids.empty() || random() % 4 == 0 ? number(3) : ids[random() % ids.size()];
    if (random() % 2) {
      m.sector = number(kSize);
      m.len = random() % 4 ? random() % 2048 : number(kSize);
    } else {
      m.sector = 0;
      m.len = kSize;
    }
    m.gen = m.id ? 0 : channel.gen;
    if (m.type == DMU_MSG_MAP) {
      m.read_dest = random() % 8 ? random() % 2 : static_cast<uint32_t>(number(3));
      m.write_dest = random() % 8 ? 1 : static_cast<uint32_t>(number(3));
      m.read_sector = random() % 2 ? m.sector : number(Ram::kSectors);
      m.write_sector = random() % 2 ? m.sector : number(Ram::kSectors);
      if (random() % 2) m.flags = (random() % 64) << 8;
      if (m.flags & DMU_F_OVERLAY) m.granule = random() % 4 ? 1U << (random() % 12) : random();
    }
    if (m.type == DMU_MSG_COMMITTED) m.seq = random() % 4 ? channel.seq : number(channel.seq + 4);
    if (m.type == DMU_MSG_BITMAP || m.type == DMU_MSG_DATA) {
      m.data = random() % 16 ? reinterpret_cast<uintptr_t>(bytes) : number(1 << 20);
      m.data_len = static_cast<uint32_t>(random() % 4 ? (random() % 129) * 512 : number(sizeof bytes));
      if (m.type == DMU_MSG_DATA) m.len = m.data_len / 512;
      for (int i = 0; i < 64; i++) bytes[random() % 4096] = static_cast<uint8_t>(random());
    }
    if (m.type == DMU_MSG_FAIL) m.error = random() % 2 ? static_cast<int>(random() % 140) : static_cast<int>(random());
    if (random() % 32 == 0) reinterpret_cast<uint8_t*>(&m)[random() % sizeof m] ^= static_cast<uint8_t>(1U << (random() % 8));
    return m;
  };
  auto end = Clock::now() + Ms(20'000);
  uint64_t sent = 0, taken = 0;
  while (Clock::now() < end) {
    while (auto msg = channel.next(Ms(0)))
      if (msg->id) ids.push_back(msg->id);
    if (ids.size() > 64) ids.erase(ids.begin(), ids.end() - 64);
    for (int i = 0; i < 32; i++, sent++) taken += channel.try_send(message()) == 0;
  }
  stop = true;
  owner->close();  // what was read and never answered comes again, and is failed now
  Channel last(*rig.target, true);
  auto drain = Clock::now() + kSoon;
  auto all_done = [&] {
    for (Io& io : load)
      if (!io.done()) return false;
    return true;
  };
  while (!all_done()) {
    CHECK(Clock::now() < drain);
    if (auto msg = last.next(Ms(20)); msg && msg->id) last.try_send(dmu_msg_fail(msg->id, 0));
    last.try_send(dmu_msg_committed(last.seq));  // for those that wait for room among the uncommitted
  }
  printf("# %llu messages, %llu taken\n", static_cast<unsigned long long>(sent), static_cast<unsigned long long>(taken));
  CHECK(taken > 100);
  while (last.next(Ms(0))) {
  }
  last.send(dmu_msg_committed(last.seq));
  check_alive(rig, last);
  std::string now = kernel_log();
  std::string added = now.size() > log.size() && now.rfind(log, 0) == 0 ? now.substr(log.size()) : "";
  if (added.find("userspace") != std::string::npos) FAIL("the kernel logged: " + added);
}
