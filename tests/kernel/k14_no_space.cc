// SPDX-License-Identifier: GPL-2.0-or-later
// K14: a write that finds its destination full is held, told as ERROR, and goes on
// when the daemon says that there is room.
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "tests/kernel/target.hh"

using namespace dmutest;

namespace {

constexpr uint64_t kChunk = 128;  // what dm-thin allocates at once, sectors

// A device with one plain extent, or an overlay, over a thin disk that has no room
// left: its chunk 0 is written, nothing else is.
struct Full {
  Full() : thin(kChunk) {
    fill_disk(thin.disk().path(), 0, kChunk, kCow);
    fill_disk(base.path(), 0, kSize, kBase);
    target = std::make_unique<Target>(kSize, std::vector<Dest>{{&base, true}, {&thin.disk(), false}});
    file = std::make_unique<File>(target->path());
    channel = std::make_unique<Channel>(*target);
  }
  void plain() {
    dmu_msg map = map_plain(0, 0, kSize, 1, 0);
    dmu_map_push(&map, channel->gen);
    channel->send(map);
  }
  void overlay(uint32_t granule) {
    dmu_msg map = map_overlay(0, kSize, 0, granule);
    dmu_map_push(&map, channel->gen);
    channel->send(map);
    channel->send(dmu_msg_bitmap(0, channel->gen, 0, kSize, nullptr, 0));
  }
  Ram base;
  Thin thin;
  std::unique_ptr<Target> target;
  std::unique_ptr<File> file;
  std::unique_ptr<Channel> channel;
};

}  // namespace

CASE(k14_full_destination_asks_and_goes_on) {
  Full full;
  full.plain();
  CHECK_EQ(full.file->write(0, 8, kNew).result(), 8 * 512);
  Io write = full.file->write(1024, 16, kNew);
  dmu_msg error = full.channel->expect(DMU_MSG_ERROR);
  CHECK_EQ(error.error, ENOSPC);
  CHECK_EQ(error.write_dest, 1U);
  CHECK_EQ(error.sector, 1024U);
  CHECK_EQ(error.write_sector, 1024U);
  CHECK(!write.done());
  full.thin.grow(64 * kChunk);
  full.channel->send(dmu_msg_retry(error.id));
  CHECK_EQ(write.result(), 16 * 512);
  CHECK_READS(*full.file, 1024, 16, kNew);
}

CASE(k14_retry_without_room_asks_again) {
  Full full;
  full.plain();
  Io write = full.file->write(1024, 16, kNew);
  for (int i = 0; i < 3; i++) {
    dmu_msg error = full.channel->expect(DMU_MSG_ERROR);
    CHECK(!write.done());
    full.channel->send(dmu_msg_retry(error.id));
  }
  full.channel->send(dmu_msg_fail(full.channel->expect(DMU_MSG_ERROR).id, ENOSPC));
  CHECK_EQ(write.result(), -ENOSPC);
}

CASE(k14_no_granule_is_promoted) {
  Full full;
  full.overlay(kGranule);
  Io write = full.file->write(1024, 16, kNew);
  dmu_msg error = full.channel->expect(DMU_MSG_ERROR);
  CHECK(full.channel->promoted.empty());
  CHECK_EQ(full.target->status().uncommitted, 0U);
  CHECK_READS(*full.file, 1024, 16, kBase);
  full.thin.grow(64 * kChunk);
  full.channel->send(dmu_msg_retry(error.id));
  CHECK_EQ(write.result(), 16 * 512);
  full.channel->expect_promoted(16);
  CHECK_READS(*full.file, 1024, 16, kNew);
}

CASE(k14_full_destination_of_a_copy) {
  Full full;
  full.overlay(64);
  Io write = full.file->write(1032, 8, kNew);  // most of the granule is copied
  dmu_msg error = full.channel->expect(DMU_MSG_ERROR);
  CHECK(!write.done());
  full.thin.grow(64 * kChunk);
  full.channel->send(dmu_msg_retry(error.id));
  CHECK_EQ(write.result(), 8 * 512);
  CHECK_READS(*full.file, 1024, 8, kBase);
  CHECK_READS(*full.file, 1032, 8, kNew);
  CHECK_READS(*full.file, 1040, 48, kBase);
}

// The copies need a chunk that is not there, the write itself does not.
CASE(k14_copy_without_room_beside_a_write_with_room) {
  Full full;
  full.overlay(2 * kChunk);
  Io write = full.file->write(8, 8, kNew);
  dmu_msg error = full.channel->expect(DMU_MSG_ERROR);
  CHECK_EQ(error.error, ENOSPC);
  CHECK_EQ(error.write_sector, 8U);
  CHECK(!write.done());
  CHECK(full.channel->promoted.empty());
  full.thin.grow(64 * kChunk);
  full.channel->send(dmu_msg_retry(error.id));
  CHECK_EQ(write.result(), 8 * 512);
  full.channel->expect_promoted(2 * kChunk);
  CHECK_READS(*full.file, 0, 8, kBase);
  CHECK_READS(*full.file, 8, 8, kNew);
  CHECK_READS(*full.file, 16, 2 * kChunk - 16, kBase);
}

// A file with nothing but its first 8 KiB, in a file system without room, through a loop device: it
// offers WRITE_ZEROES, and says EIO to it where there is no room.
class FullFile {
 public:
  FullFile() {
    char name[] = "/tmp/k14-XXXXXX";
    if (!mkdtemp(name)) FAIL("cannot make a directory");
    dir_ = name;
    run({"mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", ram_.path()});
    run({"mount", ram_.path(), dir_});
    run({"dd", "if=/dev/zero", "of=" + dir_ + "/file", "bs=8k", "count=1", "conv=fsync", "status=none"});
    run({"truncate", "-s", "16M", dir_ + "/file"});
    int status = 0;
    for (const char* piece : {"256k", "4k"})
      run({"sh", "-c", "dd if=/dev/zero of=" + dir_ + "/rest." + piece + " bs=" + piece + " oflag=direct status=none 2>&1"}, &status);
    std::string path = run({"losetup", "--direct-io=on", "--find", "--show", dir_ + "/file"});
    path.erase(path.find('\n'));
    loop_ = std::make_unique<Path>(path);
  }
  ~FullFile() {
    int status = 0;
    run({"losetup", "--detach", loop_->path()}, &status);
    EVENTUALLY((run({"umount", dir_}, &status), status == 0));
    rmdir(dir_.c_str());
  }
  Disk& disk() { return *loop_; }
  void make_room() { run({"rm", dir_ + "/rest.256k", dir_ + "/rest.4k"}); }

 private:
  Ram ram_;
  std::string dir_;
  std::unique_ptr<Path> loop_;
};

CASE(k14_copy_into_a_full_file) {
  Ram base;
  FullFile full;
  fill_disk(base.path(), 0, kSize, kBase);
  Target target(kSize, {{&base, true}, {&full.disk(), false}});
  File file(target.path());
  Channel channel(target);
  dmu_msg map = map_overlay(0, kSize, 0, kChunk);
  dmu_map_push(&map, channel.gen);
  channel.send(map);
  channel.send(dmu_msg_bitmap(0, channel.gen, 0, kSize, nullptr, 0));
  std::vector<Io> writes;
  for (const uint64_t at : {uint64_t{0}, uint64_t{8}, 10 * kChunk + 8}) writes.push_back(file.write(at, 8, kNew));
  std::vector<dmu_msg> errors;
  for (int i = 0; i < 3; i++) errors.push_back(channel.expect(DMU_MSG_ERROR));
  for (const Io& write : writes) CHECK(!write.done());
  CHECK(channel.promoted.empty());
  full.make_room();
  for (const dmu_msg& error : errors) channel.send(dmu_msg_retry(error.id));
  for (Io& write : writes) CHECK_EQ(write.result(), 8 * 512);
  CHECK_READS(file, 0, 16, kNew);
  CHECK_READS(file, 16, kChunk - 16, kBase);
  CHECK_READS(file, 10 * kChunk, 8, kBase);
  CHECK_READS(file, 10 * kChunk + 8, 8, kNew);
}

CASE(k14_error_goes_to_the_next_channel) {
  Full full;
  full.plain();
  Io write = full.file->write(1024, 16, kNew);
  full.channel->expect(DMU_MSG_ERROR);
  full.channel->close();
  full.channel = std::make_unique<Channel>(*full.target);
  dmu_msg error = full.channel->expect(DMU_MSG_ERROR);
  CHECK(!write.done());
  full.thin.grow(64 * kChunk);
  full.channel->send(dmu_msg_retry(error.id));
  CHECK_EQ(write.result(), 16 * 512);
}

CASE(k14_suspend_releases_it) {
  Full full;
  full.plain();
  Io write = full.file->write(1024, 16, kNew);
  full.channel->expect(DMU_MSG_ERROR);
  CHECK_EQ(full.target->suspend(DMU_NOFLUSH), 0);
  CHECK(!write.done());
  full.thin.grow(64 * kChunk);
  CHECK_EQ(full.target->resume(), 0);
  CHECK_EQ(write.result(), 16 * 512);
  CHECK_READS(*full.file, 1024, 16, kNew);
}

// Nobody may make room while the device is suspended: a suspend that flushes ends all the same.
CASE(k14_flushing_suspend_ends_it) {
  Full full;
  full.plain();
  Io write = full.file->write(1024, 16, kNew);
  full.channel->expect(DMU_MSG_ERROR);
  CHECK_EQ(full.target->suspend(), 0);
  CHECK_EQ(write.result(), -ENOSPC);
  CHECK_EQ(full.target->resume(), 0);
  CHECK_EQ(full.file->write(0, 8, kNew).result(), 8 * 512);
}

CASE(k14_other_io_goes_on) {
  Full full;
  full.plain();
  Io write = full.file->write(1024, 16, kNew);
  dmu_msg error = full.channel->expect(DMU_MSG_ERROR);
  CHECK_EQ(full.file->write(0, 8, kNew).result(), 8 * 512);
  CHECK_READS(*full.file, 0, 8, kNew);
  CHECK_EQ(full.file->sync().result(), 0);
  full.channel->send(dmu_msg_fail(error.id, 0));
  CHECK_EQ(write.result(), -EIO);
}

CASE(k14_other_errors_go_up_at_once) {
  Ram ram;
  Dm bad("bad", linear(0, Ram::kSectors, ram, 0));
  Rig rig(nullptr, &bad);
  Channel channel(*rig.target);
  dmu_msg map = map_plain(0, 0, kSize, 1, 0);
  dmu_map_push(&map, channel.gen);
  channel.send(map);
  bad.reload(error(0, Ram::kSectors));
  CHECK_EQ(rig.file->write(1024, 16, kNew).result(), -EIO);
  channel.expect_silence(Ms(0));
}
