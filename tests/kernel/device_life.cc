// SPDX-License-Identifier: GPL-2.0-or-later
// A device's life: what removal, unloading and a second daemon find, and what
// libdmu does with devices.
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "tests/kernel/target.hh"

using namespace dmutest;

CASE(life_remove_while_in_use) {
  Rig rig;
  Channel channel(*rig.target);
  CHECK_EQ(rig.target->remove(), -EBUSY);
  int status = 0;
  run({"dmsetup", "remove", rig.target->name()}, &status);
  CHECK(status != 0);
  rig.push_overlay(channel);
  CHECK_READS(*rig.file, 0, 8, kBase);  // it is still served
  rig.file.reset();
  CHECK_EQ(rig.target->remove(), 0);  // a channel holds nothing
}

CASE(life_removal_hangs_the_channel_up) {
  Rig rig;
  Channel channel(*rig.target);
  rig.file.reset();
  CHECK_EQ(rig.target->remove(), 0);
  pollfd p{channel.fd(), POLLIN, 0};
  CHECK_EQ(poll(&p, 1, 10'000), 1);
  CHECK(p.revents & POLLHUP);
  dmu_msg msg{};
  CHECK_EQ(read(channel.fd(), &msg, sizeof msg), -1);
  CHECK_EQ(errno, ENODEV);
  CHECK_EQ(channel.try_send(dmu_msg_ack(1)), -ENODEV);
}

CASE(life_deferred_removal) {
  Rig rig;
  Channel channel(*rig.target);
  CHECK_EQ(rig.target->remove(DMU_DEFERRED), 0);
  CHECK(rig.target->info().flags & DMU_INFO_DEFERRED_REMOVE);
  rig.push_overlay(channel);
  CHECK_READS(*rig.file, 0, 8, kBase);
  rig.file.reset();
  pollfd p{channel.fd(), POLLIN, 0};
  while (poll(&p, 1, 10'000) == 1 && !(p.revents & POLLHUP)) channel.next(Ms(0));
  CHECK(p.revents & POLLHUP);
}

// What a daemon does with the disk of a guest that is being destroyed.
CASE(life_wipe_fails_what_waits) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  CHECK_EQ(rig.file->write(64, 8, kNew).result(), 8 * 512);
  channel.invalidate(0, kSize);
  Io parked = rig.file->write(0, 8, kNew);
  channel.expect(DMU_MSG_FAULT);
  CHECK_EQ(rig.target->remove(DMU_DEFERRED), 0);
  CHECK_EQ(dmu_wipe(rig.target->name().c_str(), DMU_NO_UDEV_SCAN, nullptr), 0);
  CHECK_EQ(parked.result(), -EIO);
  CHECK_EQ(rig.file->write(0, 8, kNew).result(), -EIO);
  pollfd p{channel.fd(), POLLIN, 0};
  CHECK_EQ(poll(&p, 1, 10'000), 1);
  CHECK(p.revents & POLLHUP);
  rig.file.reset();
  dmu_info info{};
  info.size = sizeof info;
  while (dmu_get_info(rig.target->name().c_str(), &info, nullptr) != -ENXIO) usleep(1000);
  CHECK_EQ(dmu_wipe(rig.target->name().c_str(), DMU_NO_UDEV_SCAN, nullptr), -ENXIO);
}

CASE(life_module_stays_while_in_use) {
  Rig rig;
  int status = 0;
  run({"rmmod", "dm-userspace"}, &status);
  CHECK(status != 0);
  {
    Channel channel(*rig.target);
    rig.file.reset();
    CHECK_EQ(rig.target->remove(), 0);
    run({"rmmod", "dm-userspace"}, &status);  // the open channel alone holds it
    CHECK(status != 0);
  }
}

CASE(life_one_channel_a_device) {
  Rig rig, other;
  Channel channel(*rig.target);
  dmu_channel* second = nullptr;
  dmu_error err{};
  CHECK_EQ(dmu_channel_open(rig.target->name().c_str(), &second, &err), -EBUSY);
  CHECK(strstr(err.text, "another daemon"));
  Channel unrelated(*other.target);
  dmu_attach again{};
  again.size = sizeof again;
  again.abi_major = DMU_ABI_MAJOR;
  strncpy(again.key, other.target->name().c_str(), sizeof again.key - 1);
  CHECK_EQ(ioctl(channel.fd(), DMU_ATTACH, &again), -1);
  CHECK_EQ(errno, EBUSY);  // this file is bound
}

CASE(life_last_close_is_the_fence) {
  Rig rig;
  auto channel = std::make_unique<Channel>(*rig.target);
  int copy = dup(channel->fd());
  channel->close();
  dmu_channel* second = nullptr;
  CHECK_EQ(dmu_channel_open(rig.target->name().c_str(), &second, nullptr), -EBUSY);
  close(copy);
  Channel next(*rig.target);
}

CASE(life_attach_by_number) {
  Rig rig;
  dmu_info info = rig.target->info();
  dmu_channel* channel = nullptr;
  CHECK_EQ(dmu_channel_open_dev(info.major, info.minor, &channel, nullptr), 0);
  const dmu_attach* attach = dmu_channel_attach(channel);
  CHECK_EQ(std::string(attach->key), rig.target->name());
  CHECK_EQ(attach->sectors, kSize);
  CHECK_EQ(attach->num_dests, 2U);
  CHECK_EQ(attach->leaf_granules, static_cast<uint32_t>(DMU_LEAF_GRANULES));
  CHECK(attach->max_extents > 0);
  dmu_channel_close(channel);
  CHECK_EQ(dmu_channel_open("nobody", &channel, nullptr), -ENODEV);
}

// An attached channel may be handed to a worker without any privilege; that one
// could not have attached by itself.
CASE(life_channel_of_an_unprivileged_worker) {
  Rig rig;
  Channel channel(*rig.target);
  dmu_attach attach = channel.attach();
  Io read = rig.file->read(0, 8);
  pid_t pid = fork();
  if (pid == 0) {
    dmu_channel* mine = nullptr;
    dmu_msg fault{};
    if (setgid(65534) || setuid(65534)) _exit(2);
    if (dmu_channel_open(attach.key, &mine, nullptr) == 0) _exit(3);
    if (dmu_channel_adopt(dup(channel.fd()), &attach, &mine, nullptr)) _exit(4);
    pollfd p{dmu_channel_fd(mine), POLLIN, 0};
    while (dmu_channel_receive(mine, &fault, 1) != 1)
      if (poll(&p, 1, 10'000) != 1) _exit(5);
    dmu_msg map = map_plain(fault.id, 0, kSize, 1, 0);
    _exit(dmu_channel_send(mine, &map, 1, nullptr) == 1 ? 0 : 6);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  CHECK_EQ(status, 0);
  CHECK_EQ(read.result(), 8 * 512);
}

CASE(life_list_and_errors_of_libdmu) {
  Rig rig;
  Ram other;
  Dm plain("plain", linear(0, 64, other, 0));
  std::set<std::string> names;
  CHECK_EQ(dmu_list(
               [](const dmu_info* info, void* context) {
                 static_cast<std::set<std::string>*>(context)->insert(info->name);
                 return 0;
               },
               &names, nullptr),
           0);
  CHECK(names.count(rig.target->name()));
  CHECK(!names.count(plain.name()));

  dmu_error err{};
  dmu_status status{};
  status.size = sizeof status;
  CHECK_EQ(dmu_get_status(plain.name().c_str(), &status, &err), -EMEDIUMTYPE);
  CHECK_EQ(dmu_get_status("dmut-nothing", &status, &err), -ENXIO);
  CHECK(strstr(err.text, "dmut-nothing"));
  CHECK_EQ(dmu_suspend("dmut-nothing", 0, &err), -ENXIO);
  CHECK_EQ(dmu_remove("dmut-nothing", 0, &err), -ENXIO);
  CHECK_EQ(err.code, -ENXIO);
  uint32_t version[3];
  CHECK_EQ(dmu_target_version(version, &err), 0);
  dmu_info info = rig.target->info();
  CHECK_EQ(std::string(info.uuid), DMU_UUID_PREFIX + rig.target->name());
  CHECK_EQ(std::string(info.path), rig.target->path());
  CHECK_EQ(info.open_count, 1U);

  dmu_dest missing{"/dev/dmut-missing", 0, 0};
  dmu_spec spec{};
  spec.size = sizeof spec;
  spec.name = spec.key = "dmut-missing";
  spec.sectors = 64;
  spec.dests = &missing;
  spec.num_dests = 1;
  CHECK(dmu_create(&spec, nullptr, &err) < 0);
  CHECK(strstr(err.text, "dmut-missing"));
  CHECK_EQ(dmu_get_status("dmut-missing", &status, nullptr), -ENXIO);  // nothing is left of it
}

CASE(life_suspend_of_one_device_holds_up_no_other) {
  Ram ram;
  auto slow = linear_over(ram);
  Rig rig(nullptr, slow.get()), other;
  Channel channel(*rig.target);
  dmu_msg map = map_plain(0, 0, kSize, 1, 0);
  dmu_map_push(&map, channel.gen);
  channel.send(map);
  slow->hold();
  Io write = rig.file->write(0, 8, kNew);
  EVENTUALLY(rig.in_flight() == 1);
  Io suspended([&] { return static_cast<long>(rig.target->suspend(DMU_NOFLUSH)); });
  CHECK_EQ(other.target->suspend(DMU_NOFLUSH), 0);
  CHECK_EQ(other.target->resume(), 0);
  CHECK(!suspended.done());
  slow->release();
  CHECK_EQ(suspended.result(), 0);
  CHECK_EQ(rig.target->resume(), 0);
  CHECK_EQ(write.result(), 8 * 512);
}

CASE(life_example_stripes) {
  Ram disks[3];
  for (Ram& disk : disks) fill_disk(disk.path(), 0, 8192, kCow);
  char self[4096];
  ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
  std::string program(self, static_cast<size_t>(n));
  for (int up = 0; up < 3; up++) program.erase(program.rfind('/'));
  program += "/bin/dmu-stripe";
  std::string name = "dmut-stripe";
  int out[2];
  CHECK_EQ(pipe2(out, O_CLOEXEC), 0);
  pid_t pid = fork();
  if (pid == 0) {
    dup2(out[1], 1);
    execl(program.c_str(), "dmu-stripe", name.c_str(), "64", disks[0].path().c_str(), disks[1].path().c_str(),
          disks[2].path().c_str(), nullptr);
    _exit(127);
  }
  close(out[1]);
  char line[16] = {};
  CHECK(read(out[0], line, sizeof line) > 0);  // "ready"
  {
    File file("/dev/mapper/" + name);
    file.fill(0, 8192, kNew);
    CHECK_READS(file, 0, 8192, kNew);
    Buffer buf(128);
    CHECK_EQ(File(disks[1].path()).read_now(0, buf), 128 * 512);
    CHECK_EQ(buf.seed_of(0, 128), kNew);  // the second chunk is the first of the second disk
    CHECK_EQ(file.sync_now(), 0);
  }
  // What dm-stripe makes of the same disks reads the same.
  Dm stripe("dmstripe", "0 8064 striped 3 128 " + disks[0].path() + " 0 " + disks[1].path() + " 0 " + disks[2].path() + " 0\n");
  CHECK_READS(File(stripe.path()), 0, 8064, kNew);
  CHECK_EQ(dmu_remove(name.c_str(), 0, nullptr), 0);
  int status = -1;
  waitpid(pid, &status, 0);
  CHECK_EQ(status, 0);
}
