// SPDX-License-Identifier: GPL-2.0-or-later
// K13: a good dm citizen: tables are checked and reload, limits are passed on, dm
// events tell of daemons, NOWAIT does not wait.
#include <sys/uio.h>

#include <cerrno>

#include "tests/kernel/target.hh"

using namespace dmutest;

namespace {

std::string table_of(const std::string& name) {
  std::string line = run({"dmsetup", "table", name});
  line.erase(line.find_last_not_of('\n') + 1);
  return line;
}

// Only loaded, never resumed: udev would read a live device that nobody serves.
int create(const std::string& table) {
  int status = 0;
  run({"dmsetup", "create", "dmut-citizen", "--notable"});
  run({"dmsetup", "load", "dmut-citizen", "--table", table}, &status);
  run({"dmsetup", "remove", "dmut-citizen"});
  return status;
}

}  // namespace

CASE(k13_table_reloads) {
  Ram base, cow;
  Target target(kSize, {{&base, true}, {&cow, false}}, [](dmu_spec& spec) {
    spec.no_daemon = DMU_NO_DAEMON_FAIL;
    spec.no_daemon_secs = 9;
    spec.max_extents = 1000;
    spec.max_uncommitted = 2000;
    spec.discard_granularity = 65536;
    spec.write_zeroes = 1;
  });
  std::string line = table_of(target.name());
  run({"dmsetup", "load", target.name(), "--table", line});
  run({"dmsetup", "suspend", "--noflush", target.name()});
  run({"dmsetup", "resume", target.name()});
  CHECK_EQ(table_of(target.name()), line);

  auto table = std::make_unique<dmu_table>();
  table->size = sizeof *table;
  CHECK_EQ(dmu_get_table(target.name().c_str(), table.get(), nullptr), 0);
  CHECK_EQ(table->sectors, kSize);
  CHECK_EQ(std::string(table->key), target.name());
  CHECK_EQ(table->no_daemon_secs, 9U);
  CHECK_EQ(table->max_extents, 1000U);
  CHECK_EQ(table->max_uncommitted, 2000U);
  CHECK_EQ(table->discard_granularity, 65536U);
  CHECK_EQ(table->write_zeroes, 1U);
  CHECK_EQ(table->num_dests, 2U);
  CHECK_EQ(table->dests[0].flags, DMU_READ_ONLY);
  CHECK_EQ(table->dests[1].flags, 0U);
}

CASE(k13_wrong_tables_are_refused) {
  Ram ram;
  const std::string& d = ram.path();
  CHECK_EQ(create("0 64 userspace citizen 0 1 " + d + " rw"), 0);
  for (const std::string& rest : {
           std::string(""), std::string("citizen"), std::string("citizen 0"), std::string("citizen x 1 ") + d + " rw",
           std::string("citizen 0 1"), "citizen 0 1 " + d, "citizen 0 1 " + d + " rx", "citizen 0 2 " + d + " rw",
           "citizen 0 1 " + d + " rw more", std::string("citizen 0 1 /dev/nothing rw"), std::string("citizen 0 65"),
           "citizen 1 sparkles 1 " + d + " rw", "citizen 1 max_extents 1 " + d + " rw", "citizen 2 max_extents 0 1 " + d + " rw",
           "citizen 2 max_extents many 1 " + d + " rw", "citizen 1 fail_if_no_daemon 1 " + d + " rw",
           "citizen 3 queue_if_no_daemon fail_if_no_daemon 1 1 " + d + " rw", "citizen 2 discard_granularity 1000 1 " + d + " rw",
           "citizen -1 1 " + d + " rw", std::string(DMU_KEY_MAX, 'k') + " 0 1 " + d + " rw"})
    if (create("0 64 userspace " + rest) == 0) FAIL("taken: " + rest);
}

CASE(k13_one_target_a_table) {
  Ram ram;
  std::string one = " 64 userspace citizen 0 1 " + ram.path() + " rw\n";
  CHECK(create("0" + one + "64" + one) != 0);
  CHECK(create("0" + one + "64 64 zero\n") != 0);
}

CASE(k13_one_device_a_key) {
  Ram ram;
  Target target(kSize, {{&ram, false}});
  CHECK(create("0 64 userspace " + target.name() + " 0 1 " + ram.path() + " rw") != 0);
  CHECK_EQ(target.reload(kSize, {{&ram, false}}, DMU_NOFLUSH), 0);  // its own key is no other's
}

CASE(k13_limits_of_the_destinations) {
  Null cow;
  Rig rig(nullptr, &cow, [](dmu_spec& spec) { spec.discard_granularity = 65536; });
  Path device(rig.target->path());
  CHECK_EQ(device.queue("logical_block_size"), "512");
  CHECK_EQ(device.queue("discard_granularity"), "65536");
  CHECK(device.queue("discard_max_bytes") != "0");
  CHECK_EQ(device.queue("rotational"), cow.queue("rotational"));
  CHECK_EQ(device.sectors(), kSize);
}

CASE(k13_larger_logical_blocks) {
  Ram ram;
  Scsi scsi({"sector_size=4096", "dev_size_mb=16"});
  Target target(kSize, {{&ram, true}, {&scsi, false}});
  CHECK_EQ(Path(target.path()).queue("logical_block_size"), "4096");
  Channel channel(target);
  CHECK_EQ(channel.attach().logical_block_size, 4096U);
  dmu_msg map = map_plain(0, 4, 8, 1, 4);  // would cut a block
  dmu_map_push(&map, channel.gen);
  CHECK_EQ(channel.try_send(map), -EINVAL);
  map = map_plain(0, 0, kSize, 1, 0);
  dmu_map_push(&map, channel.gen);
  channel.send(map);
  File file(target.path());
  file.fill(0, 64, kNew);
  CHECK_READS(file, 0, 64, kNew);
}

CASE(k13_reload_onto_larger_blocks_forgets_what_cuts_them) {
  Ram ram;
  Scsi scsi({"sector_size=4096", "dev_size_mb=16"});
  Target target(kSize, {{&ram, false}});
  Channel channel(target);
  dmu_msg cut = map_plain(0, 0, 1024, 0, 1), whole = map_plain(0, 1024, 1024, 0, 1024);
  for (dmu_msg* map : {&cut, &whole}) {
    dmu_map_push(map, channel.gen);
    channel.send(*map);
  }
  CHECK_EQ(target.reload(kSize, {{&ram, false}, {&scsi, false}}, DMU_NOFLUSH), 0);
  CHECK_EQ(target.status().extents, 1U);
  File file(target.path());
  Io read = file.read(0, 8);
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  channel.send(map_plain(fault.id, 0, 1024, 1, 0));
  CHECK_EQ(read.result(), 8 * 512);
}

CASE(k13_events_tell_of_daemons) {
  Rig rig;
  uint32_t event = rig.target->info().event_nr;
  auto channel = std::make_unique<Channel>(*rig.target);
  EVENTUALLY(rig.target->info().event_nr > event);
  event = rig.target->info().event_nr;
  channel->close();
  EVENTUALLY(rig.target->info().event_nr > event);
}

CASE(k13_events_tell_of_bios_that_fail) {
  Rig rig([](dmu_spec& spec) {
    spec.no_daemon = DMU_NO_DAEMON_FAIL;
    spec.no_daemon_secs = 3;
  });
  const uint32_t event = rig.target->info().event_nr;
  Io read = rig.file->read(0, 8);
  EVENTUALLY(rig.target->info().event_nr > event);
  CHECK_EQ(read.result(), -EIO);
}

CASE(k13_states_are_told) {
  Rig rig;
  auto state = [&] { return std::string(dmu_state_name(rig.target->status().state)); };
  CHECK_EQ(state(), "no_daemon");
  Channel channel(*rig.target);
  CHECK_EQ(state(), "active");
  CHECK_EQ(rig.target->suspend(DMU_NOFLUSH), 0);
  CHECK_EQ(state(), "suspended");
  CHECK_EQ(rig.target->resume(), 0);
  CHECK_EQ(state(), "active");
  channel.close();
  EVENTUALLY(state() == "no_daemon");
}

CASE(k13_nowait_does_not_wait) {
  Rig rig;
  Channel channel(*rig.target);
  Buffer buf(8);
  CHECK_EQ(rig.file->read_now(0, buf, RWF_NOWAIT), -EAGAIN);
  CHECK_EQ(rig.file->write_now(0, 8, kNew, RWF_NOWAIT), -EAGAIN);
  CHECK_EQ(rig.target->status().bios_parked, 0U);
  while (channel.next(Ms(0))) {  // it may have asked for the sake of the next try
  }
  rig.push_overlay(channel);
  CHECK_EQ(rig.file->read_now(0, buf, RWF_NOWAIT), 8 * 512);
}

CASE(k13_nowait_does_not_wait_for_another_write) {
  Ram ram;
  auto slow = linear_over(ram);
  Rig rig(nullptr, slow.get());
  Channel channel(*rig.target);
  rig.push_overlay(channel);
  slow->hold();
  Io first = rig.file->write(0, 8, kNew);
  EVENTUALLY(rig.in_flight() == 1);
  CHECK_EQ(rig.file->write_now(0, 8, kCow, RWF_NOWAIT), -EAGAIN);
  CHECK(!first.done());
  slow->release();
  CHECK_EQ(first.result(), 8 * 512);
  CHECK_EQ(rig.file->write_now(0, 8, kCow, RWF_NOWAIT), 8 * 512);
}

CASE(k13_nowait_copies_nothing) {
  Rig rig;
  Channel channel(*rig.target);
  rig.push_overlay(channel, 64);
  CHECK_EQ(rig.file->write_now(0, 8, kNew, RWF_NOWAIT), -EAGAIN);
  CHECK_EQ(rig.target->status().copies, 0U);
  CHECK_EQ(rig.file->write_now(0, 64, kNew, RWF_NOWAIT), 64 * 512);
  CHECK_EQ(rig.file->write_now(64, 8, kNew), 8 * 512);
  CHECK_EQ(rig.file->write_now(72, 8, kNew, RWF_NOWAIT), 8 * 512);
  CHECK_READS(*rig.file, 80, 48, kBase);
}

CASE(k13_counters_and_extents_add_up) {
  Rig rig;
  Channel channel(*rig.target);
  Io read = rig.file->read(0, 8);
  dmu_msg fault = channel.expect(DMU_MSG_FAULT);
  dmu_status status = rig.target->status();
  CHECK_EQ(status.faults_outstanding, 1U);
  CHECK_EQ(status.bios_parked, 1U);
  CHECK_EQ(status.faults, 1U);
  CHECK_EQ(status.reads_parked, 1U);
  channel.send(map_plain(fault.id, 0, 64, 1, 0));
  CHECK_EQ(read.result(), 8 * 512);
  dmu_msg map = map_plain(0, 128, 64, 1, 4096);
  dmu_map_push(&map, channel.gen);
  channel.send(map);
  status = rig.target->status();
  CHECK_EQ(status.faults_outstanding, 0U);
  CHECK_EQ(status.bios_parked, 0U);
  CHECK_EQ(status.extents, 2U);
  CHECK_EQ(status.pushed, 1U);
  CHECK_EQ(status.errors, 0U);
}

CASE(k13_read_only_device) {
  Ram ram;
  Target target(kSize, {{&ram, true}}, [](dmu_spec& spec) { spec.flags |= DMU_READ_ONLY; });
  CHECK(target.info().flags & DMU_INFO_READ_ONLY);
  Channel channel(target);
  dmu_msg map = dmu_msg_map(0, 0, kSize);
  dmu_map_read(&map, 0, 0);
  dmu_map_push(&map, channel.gen);
  channel.send(map);
  File file(target.path());
  Buffer buf(8);
  CHECK_EQ(file.read_now(0, buf), 8 * 512);
}
