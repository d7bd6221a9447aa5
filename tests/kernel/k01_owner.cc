// SPDX-License-Identifier: GPL-2.0-or-later
// K1: no path leaves a bio without an owner. What has no answer when a channel
// closes is delivered to the next; FAIL and bad answers complete the bios.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <thread>

#include "tests/kernel/target.hh"

using namespace dmutest;

namespace {

void with_discards(dmu_spec& spec) {
  spec.discard_granularity = 4096;
  spec.write_zeroes = 1;
}

dmu_msg answer_with_base(const dmu_msg& fault) { return map_plain(fault.id, 0, kSize, 1, 0); }

// Lets `io` ask the daemon, closes the channel that has read the question, and
// returns the question as the next channel, which goes to `next`, gets it.
dmu_msg asked_again(Rig& rig, std::unique_ptr<Channel>& channel, uint32_t type) {
  dmu_msg first = channel->expect(type);
  channel->close();
  channel = std::make_unique<Channel>(*rig.target);
  dmu_msg second = channel->expect(type);
  CHECK_EQ(second.sector, first.sector);
  CHECK_EQ(second.len, first.len);
  return second;
}

}  // namespace

CASE(k01_unread_fault_goes_to_the_next_channel) {
  Rig rig;
  Io io = rig.file->read(0, 8);
  EVENTUALLY(rig.target->status().bios_parked == 1);
  {
    Channel unread(*rig.target);
  }
  Channel channel(*rig.target);
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  CHECK_EQ(fault.flags & (DMU_F_READ | DMU_F_WRITE | DMU_F_LEAF), DMU_F_READ);
  CHECK(fault.sector == 0 && fault.len >= 8);
  channel.send(answer_with_base(fault));
  CHECK_EQ(io.result(), 8 * 512);
}

CASE(k01_read_fault_goes_to_the_next_channel) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  Io write = rig.file->write(16, 8, kNew);
  dmu_msg fault = asked_again(rig, channel, DMU_MSG_FAULT);
  CHECK_EQ(fault.flags & (DMU_F_READ | DMU_F_WRITE), DMU_F_WRITE);
  CHECK(!write.done());
  channel->send(answer_with_base(fault));
  CHECK_EQ(write.result(), 8 * 512);
  CHECK_READS(*rig.file, 16, 8, kNew);
  CHECK_EQ(channel->try_send(answer_with_base(fault)), -ENOENT);
}

CASE(k01_done_goes_to_the_next_channel) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  dmu_msg map = map_plain(0, 0, kSize, 1, 0);
  map.flags = DMU_F_SYNC;
  dmu_map_push(&map, channel->gen);
  channel->send(map);
  Io write = rig.file->write(16, 8, kNew);
  dmu_msg done = asked_again(rig, channel, DMU_MSG_DONE);
  CHECK_EQ(done.write_dest, 1U);
  CHECK_EQ(done.write_sector, 16U);
  CHECK(!write.done());
  CHECK_READS(File(rig.cow->path()), 16, 8, kNew);  // it did reach the disk
  channel->send(dmu_msg_ack(done.id));
  CHECK_EQ(write.result(), 8 * 512);
}

CASE(k01_done_of_a_promotion_goes_to_the_next_channel) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  rig.push_overlay(*channel, kGranule, DMU_F_SYNC);
  Io write = rig.file->write(16, 8, kNew);
  dmu_msg done = asked_again(rig, channel, DMU_MSG_DONE);
  CHECK_EQ(channel->replayed.size(), 1U);
  CHECK_EQ(done.seq, channel->replayed[0].seq);
  CHECK(!write.done());
  channel->send(dmu_msg_ack(done.id));
  CHECK_EQ(write.result(), 8 * 512);
  channel->send(dmu_msg_committed(channel->seq));  // an ACK of DONE releases the write, no more
  CHECK_EQ(rig.target->status().uncommitted, 0U);
}

CASE(k01_flush_goes_to_the_next_channel) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  rig.push_overlay(*channel);
  rig.promote(*channel, 8, 8, kNew);
  Io sync = rig.file->sync();
  dmu_msg flush = asked_again(rig, channel, DMU_MSG_FLUSH);
  CHECK_EQ(channel->replayed.size(), 1U);
  CHECK(!sync.done());
  channel->send(dmu_msg_ack(flush.id));
  CHECK_EQ(sync.result(), 0);
}

CASE(k01_discard_goes_to_the_next_channel) {
  Rig rig(with_discards);
  auto channel = std::make_unique<Channel>(*rig.target);
  Io discard = rig.file->discard(64, 64);
  dmu_msg msg = asked_again(rig, channel, DMU_MSG_DISCARD);
  CHECK_EQ(msg.sector, 64U);
  CHECK_EQ(msg.len, 64U);
  CHECK(!discard.done());
  channel->send(dmu_msg_ack(msg.id));
  CHECK_EQ(discard.result(), 0);
}

CASE(k01_zero_goes_to_the_next_channel) {
  Loop base, cow;
  Rig rig(&base, &cow, with_discards);
  auto channel = std::make_unique<Channel>(*rig.target);
  Io zero = rig.file->zeroout(64, 64);
  dmu_msg msg = asked_again(rig, channel, DMU_MSG_ZERO);
  CHECK_EQ(msg.sector, 64U);
  CHECK_EQ(msg.len, 64U);
  CHECK(!zero.done());
  channel->send(dmu_msg_ack(msg.id));
  CHECK_EQ(zero.result(), 0);
}

CASE(k01_many_in_every_state_survive_ten_daemons) {
  Rig rig;
  std::vector<Io> writes;
  for (uint64_t i = 0; i < 32; i++) writes.push_back(rig.file->write(i * 64, 8, kNew));
  EVENTUALLY(rig.target->status().bios_parked == 32);
  for (int daemon = 0; daemon < 10; daemon++) {
    Channel channel(*rig.target);
    for (int read = 0; read < daemon; read++) channel.expect(DMU_MSG_FAULT);
  }
  Channel channel(*rig.target);
  for (int i = 0; i < 32; i++) {
    dmu_msg fault = channel.expect(DMU_MSG_FAULT);
    channel.send(map_plain(fault.id, fault.sector, fault.len, 1, fault.sector));
  }
  for (Io& io : writes) CHECK_EQ(io.result(), 8 * 512);
}

CASE(k01_done_of_a_write_in_pieces_names_no_place) {
  Rig rig;
  Channel channel(*rig.target);
  Io write = rig.file->write(0, 64, kNew);
  for (uint64_t at = 0; at < 64; at += 16) {
    dmu_msg map = map_plain(channel.expect(DMU_MSG_FAULT).id, at, 16, 1, at);
    map.flags = DMU_F_SYNC;
    channel.send(map);
  }
  dmu_msg done = channel.expect(DMU_MSG_DONE);
  CHECK_EQ(done.sector, 0U);
  CHECK_EQ(done.len, 64U);
  CHECK_EQ(done.write_dest, DMU_DEST_NONE);
  CHECK_EQ(done.write_sector, 0U);
  channel.send(dmu_msg_ack(done.id));
  CHECK_EQ(write.result(), 64 * 512);
  CHECK_READS(*rig.file, 0, 64, kNew);
}

namespace {

// A page that nobody ever fills: the kernel waits where it reads it, and a byte goes to `waits`.
void* page_for_ever(int waits) {
  const auto size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* page = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC));
  uffdio_api api{};
  api.api = UFFD_API;
  uffdio_register reg{};
  reg.range = {reinterpret_cast<uintptr_t>(page), size};
  reg.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (page == MAP_FAILED || fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
    FAIL("userfaultfd failed");
  std::thread([fd, waits] {
    pollfd fault{fd, POLLIN, 0};
    poll(&fault, 1, -1);
    if (write(waits, "", 1) != 1) _exit(1);
  }).detach();
  return page;
}

// A daemon that answers the first FAULT of the device, or the question for bits that
// comes after an overlay, from such a page.
[[noreturn]] void answer_for_ever(const Target& target, bool bits, int waits) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  try {
    Channel channel(target);
    dmu_msg fault = channel.expect(DMU_MSG_FAULT);
    if (bits) {
      channel.send(map_overlay(fault.id, kSize, 0, kGranule));
      fault = channel.expect(DMU_MSG_FAULT);
    }
    const void* page = page_for_ever(waits);
    channel.try_send(bits ? dmu_msg_bitmap(fault.id, 0, fault.sector, fault.len, page, kSize / kGranule / 8)
                          : dmu_msg_data(fault.id, fault.sector, page, 4096));
  } catch (const Failure& failure) {
    fprintf(stderr, "%s\n", failure.what());
  }
  _exit(1);
}

}  // namespace

// A daemon that is killed while its answer is being fetched has not answered.
CASE(k01_answer_of_a_killed_daemon_is_none) {
  for (const bool bits : {false, true}) {
    Rig rig;
    Io read = rig.file->read(0, 8);
    int waits[2];
    CHECK_EQ(pipe2(waits, O_CLOEXEC), 0);
    const pid_t daemon = fork();
    if (daemon == 0) answer_for_ever(*rig.target, bits, waits[1]);
    close(waits[1]);
    pollfd event{waits[0], POLLIN, 0};
    CHECK_EQ(poll(&event, 1, static_cast<int>(kSoon.count())), 1);
    CHECK(event.revents & POLLIN);
    kill(daemon, SIGKILL);
    int status = 0;
    CHECK_EQ(waitpid(daemon, &status, 0), daemon);
    CHECK(WIFSIGNALED(status));
    close(waits[0]);
    CHECK(!read.done());
    Channel next(*rig.target);
    dmu_msg fault = next.expect(DMU_MSG_FAULT);
    if (fault.flags & DMU_F_LEAF)
      next.send(dmu_msg_bitmap(fault.id, 0, fault.sector, fault.len, nullptr, 0));
    else
      next.send(map_plain(fault.id, 0, kSize, 1, 0));
    CHECK_EQ(read.result(), 8 * 512);
  }
}

CASE(k01_fail_completes_with_its_error) {
  Loop base, cow;
  Rig rig(&base, &cow, with_discards);
  Channel channel(*rig.target);
  Io read = rig.file->read(0, 8);
  channel.send(dmu_msg_fail(channel.expect(DMU_MSG_FAULT).id, 0));
  CHECK_EQ(read.result(), -EIO);
  Io write = rig.file->write(0, 8, kNew);
  channel.send(dmu_msg_fail(channel.expect(DMU_MSG_FAULT).id, ENOSPC));
  CHECK_EQ(write.result(), -ENOSPC);
  Io discard = rig.file->discard(0, 64);
  channel.send(dmu_msg_fail(channel.expect(DMU_MSG_DISCARD).id, 0));
  CHECK_EQ(discard.result(), -EIO);
  Io zero = rig.file->zeroout(0, 64);
  channel.send(dmu_msg_fail(channel.expect(DMU_MSG_ZERO).id, EIO));
  // The block layer of 6.1 tries plain writes then.
  while (!zero.done())
    if (auto msg = channel.next(kNotYet)) channel.send(dmu_msg_fail(msg->id, EIO));
  CHECK_EQ(zero.result(), -EIO);
  CHECK_EQ(rig.target->status().bios_parked, 0U);
}

CASE(k01_fail_of_flush_and_done) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  rig.promote(channel, 0, 8, kNew);
  Io sync = rig.file->sync();
  channel.send(dmu_msg_fail(channel.expect(DMU_MSG_FLUSH).id, 0));
  CHECK_EQ(sync.result(), -EIO);
  CHECK_EQ(rig.target->status().uncommitted, 1U);  // still: nobody committed it

  Rig synced;
  Channel other(*synced.target);
  dmu_msg map = map_plain(0, 0, kSize, 1, 0);
  map.flags = DMU_F_SYNC;
  dmu_map_push(&map, other.gen);
  other.send(map);
  Io write = synced.file->write(0, 8, kNew);
  other.send(dmu_msg_fail(other.expect(DMU_MSG_DONE).id, 0));
  CHECK_EQ(write.result(), -EIO);
}

CASE(k01_bad_answer_completes_with_an_error) {
  Rig rig;
  Channel channel(*rig.target);
  struct {
    const char* what;
    std::function<void(dmu_msg&)> spoil;
    int error;
  } bad[] = {
      {"no such destination", [](dmu_msg& m) { m.read_dest = 7; }, -ENXIO},
      {"beyond the destination", [](dmu_msg& m) { m.read_sector = Ram::kSectors - 1; }, -ERANGE},
      {"a write side on a read-only destination", [](dmu_msg& m) { m.write_dest = 0; }, -EROFS},
  };
  for (auto& b : bad) {
    Io io = rig.file->read(0, 8);
    dmu_msg fault = channel.expect(DMU_MSG_FAULT);
    dmu_msg map = map_plain(fault.id, 0, 8, 1, 0);
    b.spoil(map);
    CHECK_EQ(channel.try_send(map), b.error);
    CHECK_EQ(io.result(), -EIO);
    CHECK_EQ(channel.try_send(dmu_msg_fail(fault.id, 0)), -ENOENT);
  }
}

CASE(k01_rest_of_a_range_faults_again) {
  Rig rig;
  Channel channel(*rig.target);
  Io io = rig.file->write(0, 64, kNew);
  uint64_t mapped = 0;
  while (mapped < 64) {
    dmu_msg fault = channel.expect(DMU_MSG_FAULT);
    CHECK_EQ(fault.sector, mapped);
    channel.send(map_plain(fault.id, fault.sector, 16, 1, fault.sector));
    mapped += 16;
  }
  CHECK_EQ(io.result(), 64 * 512);
  CHECK_READS(*rig.file, 0, 64, kNew);
}

CASE(k01_answer_elsewhere_faults_again) {
  Rig rig;
  Channel channel(*rig.target);
  Io io = rig.file->read(0, 8);
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  int r = channel.try_send(map_plain(fault.id, 4096, 8, 1, 4096));
  if (r) {  // refused: then the read fails, and is not forgotten
    CHECK_EQ(io.result(), -EIO);
    return;
  }
  dmu_msg again = channel.expect(DMU_MSG_FAULT);
  CHECK(again.id != fault.id);
  channel.send(answer_with_base(again));
  CHECK_EQ(io.result(), 8 * 512);
}

CASE(k01_temporary_answers_once) {
  Rig rig;
  Channel channel(*rig.target);
  for (int i = 0; i < 3; i++) {
    Io io = rig.file->read(0, 8);
    dmu_msg map = map_plain(channel.expect(DMU_MSG_FAULT).id, 0, 8, 1, 0);
    map.flags = DMU_F_TEMPORARY;
    channel.send(map);
    CHECK_EQ(io.result(), 8 * 512);
  }
  CHECK_EQ(rig.target->status().extents, 0U);
}

// The rest of its range is copied, once, and nothing is kept of the answer.
CASE(k01_temporary_copy_first) {
  Rig rig;
  Channel channel(*rig.target);
  Io write = rig.file->write(8, 8, kNew);
  dmu_msg map = dmu_msg_map(channel.expect(DMU_MSG_FAULT).id, 0, 64);
  dmu_map_read(&map, 0, 0);
  dmu_map_write(&map, 1, 0);
  map.flags = DMU_F_COPY_FIRST | DMU_F_TEMPORARY;
  channel.send(map);
  CHECK_EQ(write.result(), 8 * 512);
  channel.expect_promoted(64);
  CHECK_EQ(rig.target->status().extents, 0U);
  Io read = rig.file->read(0, 8);
  channel.send(map_plain(channel.expect(DMU_MSG_FAULT).id, 0, 64, 1, 0));
  CHECK_EQ(read.result(), 8 * 512);
  CHECK_READS(*rig.file, 0, 8, kBase);
  CHECK_READS(*rig.file, 8, 8, kNew);
  CHECK_READS(*rig.file, 16, 48, kBase);
}

CASE(k01_data_answers_reads) {
  Rig rig;
  Channel channel(*rig.target);
  Buffer bytes(64);
  bytes.fill(kNew, 128);
  Buffer got(64);
  Io io([&] { return rig.file->read_now(128, got); });
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  CHECK(fault.sector <= 128 && fault.sector + fault.len >= 192);
  channel.send(dmu_msg_data(fault.id, 128, bytes.data(), 64 * 512));
  CHECK_EQ(io.result(), 64 * 512);
  for (uint64_t i = 0; i < 64; i++) CHECK_EQ(got.seed_of(i, 128), kNew);
  Io again = rig.file->read(128, 64);  // nothing was cached
  channel.send(dmu_msg_fail(channel.expect(DMU_MSG_FAULT).id, 0));
  CHECK_EQ(again.result(), -EIO);
}

CASE(k01_data_for_a_part) {
  Rig rig;
  Channel channel(*rig.target);
  Buffer got(64);
  Io io([&] { return rig.file->read_now(128, got); });
  for (uint64_t at = 128; at < 192;) {
    dmu_msg fault = channel.expect(DMU_MSG_FAULT);
    CHECK_EQ(fault.sector, at);
    Buffer bytes(16);
    bytes.fill(kNew, at);
    channel.send(dmu_msg_data(fault.id, at, bytes.data(), 16 * 512));
    at += 16;
  }
  CHECK_EQ(io.result(), 64 * 512);
  for (uint64_t i = 0; i < 64; i++) CHECK_EQ(got.seed_of(i, 128), kNew);
}
