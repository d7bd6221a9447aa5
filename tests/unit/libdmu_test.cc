// SPDX-License-Identifier: GPL-2.0-or-later
// libdmu without a kernel: the text forms, the builders, send()'s bookkeeping and what the library exports.
#include "dmu.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace {

// What the next write() calls on a fake channel return; messages taken or a negative errno.
struct FakeKernel {
  int fd = -1;
  std::deque<ssize_t> answers;
  std::vector<size_t> asked;  // messages in each call
};
FakeKernel fake;

}  // namespace

// The library's write() goes through here, as through any interposed function.
extern "C" ssize_t write(int fd, const void* data, size_t bytes) {
  if (fd != fake.fd || fake.answers.empty()) return syscall(SYS_write, fd, data, bytes);
  fake.asked.push_back(bytes / sizeof(dmu_msg));
  ssize_t answer = fake.answers.front();
  fake.answers.pop_front();
  if (answer >= 0) return answer * static_cast<ssize_t>(sizeof(dmu_msg));
  errno = static_cast<int>(-answer);
  return -1;
}

namespace {

std::string format(const dmu_spec& spec, dmu_error* err = nullptr) {
  std::array<char, 4096> buf{};
  int n = dmu_format_params(&spec, buf.data(), buf.size(), err);
  if (n < 0) return "error " + std::to_string(n);
  EXPECT_EQ(static_cast<size_t>(n), std::string(buf.data()).size());
  return buf.data();
}

class Params : public testing::Test {
 protected:
  Params() {
    dests_[0].path = "/dev/vg/base";
    dests_[0].flags = DMU_READ_ONLY;
    dests_[1].path = "253:7";
    spec_.size = sizeof spec_;
    spec_.name = "disk";
    spec_.key = "vg/disk";
    spec_.sectors = 2048;
    spec_.dests = dests_.data();
    spec_.num_dests = 2;
    table_->size = sizeof *table_;
  }
  int parse(const std::string& line) {
    table_->size = sizeof *table_;
    return dmu_parse_params(line.c_str(), table_.get(), &err_);
  }

  std::array<dmu_dest, 2> dests_{};
  dmu_spec spec_{};
  dmu_error err_{};
  std::unique_ptr<dmu_table> table_ = std::make_unique<dmu_table>();
};

TEST_F(Params, FormatWithoutFeatures) { EXPECT_EQ(format(spec_), "vg/disk 0 2 /dev/vg/base ro 253:7 rw"); }

TEST_F(Params, FormatCountsWordsOfFeatures) {
  spec_.no_daemon = DMU_NO_DAEMON_FAIL;
  spec_.no_daemon_secs = 30;
  spec_.max_extents = 1000;
  spec_.write_zeroes = 1;
  EXPECT_EQ(format(spec_),
            "vg/disk 5 fail_if_no_daemon 30 max_extents 1000 write_zeroes 2 /dev/vg/base ro 253:7 rw");
}

TEST_F(Params, FormatWithoutDestinations) {
  spec_.num_dests = 0;
  spec_.dests = nullptr;
  spec_.no_daemon = DMU_NO_DAEMON_QUEUE;
  EXPECT_EQ(format(spec_), "vg/disk 1 queue_if_no_daemon 0");
}

TEST_F(Params, FormatTellsLengthForShortBuffers) {
  std::array<char, 5> buf{};
  std::string whole = format(spec_);
  EXPECT_EQ(dmu_format_params(&spec_, buf.data(), buf.size(), nullptr), static_cast<int>(whole.size()));
  EXPECT_EQ(std::string(buf.data()), whole.substr(0, 4));
  EXPECT_EQ(dmu_format_params(&spec_, nullptr, 0, nullptr), static_cast<int>(whole.size()));
}

TEST_F(Params, EveryFeatureComesBack) {
  spec_.no_daemon = DMU_NO_DAEMON_FAIL;
  spec_.no_daemon_secs = 7;
  spec_.max_extents = 11;
  spec_.max_uncommitted = 4294967295U;
  spec_.discard_granularity = 65536;
  spec_.write_zeroes = 1;
  ASSERT_EQ(parse(format(spec_)), 0) << err_.text;
  EXPECT_STREQ(table_->key, "vg/disk");
  EXPECT_EQ(table_->no_daemon, DMU_NO_DAEMON_FAIL);
  EXPECT_EQ(table_->no_daemon_secs, 7U);
  EXPECT_EQ(table_->max_extents, 11U);
  EXPECT_EQ(table_->max_uncommitted, 4294967295U);
  EXPECT_EQ(table_->discard_granularity, 65536U);
  EXPECT_EQ(table_->write_zeroes, 1U);
  ASSERT_EQ(table_->num_dests, 2U);
  EXPECT_STREQ(table_->dests[0].path, "/dev/vg/base");
  EXPECT_EQ(table_->dests[0].flags, DMU_READ_ONLY);
  EXPECT_STREQ(table_->dests[1].path, "253:7");
  EXPECT_EQ(table_->dests[1].flags, 0U);
}

TEST_F(Params, WordsOfNewerModulesAreSkipped) {
  ASSERT_EQ(parse("k 4 shiny 12 queue_if_no_daemon newer 1 8:0 rw"), 0) << err_.text;
  EXPECT_EQ(table_->no_daemon, DMU_NO_DAEMON_QUEUE);
  EXPECT_EQ(table_->num_dests, 1U);
}

TEST_F(Params, WrongLinesAreRefusedWithASentence) {
  for (const char* line : {"", "k", "k x", "k 0", "k 0 1", "k 0 1 8:0", "k 0 1 8:0 rx", "k 0 1 8:0 rw more", "k 1 max_extents 0",
                           "k 2 max_extents -1 0", "k 2 max_extents 4294967296 0", "k 0 65", "k 9 queue_if_no_daemon 0",
                           "k 0 18446744073709551616"}) {
    EXPECT_EQ(parse(line), -EPROTO) << line;
    EXPECT_EQ(err_.code, -EPROTO);
    EXPECT_NE(std::string(err_.text).find("not the table"), std::string::npos);
  }
  EXPECT_EQ(parse(std::string(DMU_KEY_MAX, 'k') + " 0 0"), -EPROTO);
  EXPECT_EQ(parse(std::string(DMU_KEY_MAX - 1, 'k') + " 0 0"), 0);
}

TEST_F(Params, WrongSpecsAreRefusedByName) {
  auto refused = [this](auto change, const char* word) {
    dmu_spec saved = spec_;
    auto saved_dests = dests_;
    change();
    EXPECT_EQ(dmu_format_params(&spec_, nullptr, 0, &err_), -EINVAL) << word;
    EXPECT_NE(std::string(err_.text).find(word), std::string::npos) << err_.text;
    spec_ = saved;
    dests_ = saved_dests;
  };
  std::string long_name(DMU_NAME_MAX, 'n');
  refused([&] { spec_.size = 0; }, "size field");
  refused([&] { spec_.name = nullptr; }, "name");
  refused([&] { spec_.name = "a/b"; }, "a/b");
  refused([&] { spec_.name = long_name.c_str(); }, "name");
  refused([&] { spec_.key = "two words"; }, "key");
  refused([&] { spec_.key = ""; }, "key");
  refused([&] { spec_.uuid = "u u"; }, "uuid");
  refused([&] { spec_.sectors = 0; }, "size is 0");
  refused([&] { spec_.flags = 1U << 31; }, "0x80000000");
  refused([&] { spec_.no_daemon = 3; }, "feature");
  refused([&] { spec_.num_dests = DMU_MAX_DESTS + 1; }, "65");
  refused([&] { dests_[1].path = "/dev/my disk"; }, "destination 1");
  refused([&] { dests_[1].path = nullptr; }, "destination 1");
  refused([&] { dests_[1].flags = DMU_NOFLUSH; }, "253:7");
}

TEST_F(Params, SpecsOfOtherAges) {
  struct {
    dmu_spec spec;
    uint64_t newer;
  } grown{spec_, 0};
  grown.spec.size = sizeof grown;
  EXPECT_GT(dmu_format_params(&grown.spec, nullptr, 0, &err_), 0);
  grown.newer = 1;
  EXPECT_EQ(dmu_format_params(&grown.spec, nullptr, 0, &err_), -E2BIG);

  spec_.size = offsetof(dmu_spec, max_extents);  // an older program: what lies behind is not read
  spec_.max_extents = 99;
  EXPECT_EQ(format(spec_), "vg/disk 0 2 /dev/vg/base ro 253:7 rw");
}

TEST(Status, EveryCounterIsFound) {
  const char* line =
      "active 5/65536 3 1 2 400 17 13 faults 1 reads_parked 2 writes_parked 3 promotions 4 copies 5 copied_sectors 6 "
      "flushes 7 daemon_flushes 8 evictions 9 invalidations 10 discards 11 pushed 12 errors 13";
  dmu_status status{};
  status.size = sizeof status;
  ASSERT_EQ(dmu_parse_status(line, &status, nullptr), 0);
  EXPECT_EQ(status.state, DMU_STATE_ACTIVE);
  EXPECT_EQ(status.extents, 5U);
  EXPECT_EQ(status.max_extents, 65536U);
  EXPECT_EQ(status.leaves, 3U);
  EXPECT_EQ(status.faults_outstanding, 1U);
  EXPECT_EQ(status.bios_parked, 2U);
  EXPECT_EQ(status.uncommitted, 400U);
  EXPECT_EQ(status.gen, 17U);
  std::vector<uint64_t> counters = {status.faults,         status.reads_parked, status.writes_parked, status.promotions, status.copies,
                                    status.copied_sectors, status.flushes,      status.daemon_flushes, status.evictions,
                                    status.invalidations,  status.discards,     status.pushed,        status.errors};
  for (size_t i = 0; i < counters.size(); i++) EXPECT_EQ(counters[i], i + 1);
}

TEST(Status, NewerModulesAreUnderstood) {
  dmu_status status{};
  status.size = sizeof status;
  ASSERT_EQ(dmu_parse_status("resting 0/1 0 0 0 0 18446744073709551615 2 sparkles 9 errors 4 and more", &status, nullptr), 0);
  EXPECT_EQ(status.state, DMU_STATE_UNKNOWN);
  EXPECT_EQ(status.gen, UINT64_MAX);
  EXPECT_EQ(status.errors, 4U);
}

TEST(Status, WrongLinesAreRefused) {
  dmu_status status{};
  dmu_error err{};
  status.size = sizeof status;
  for (const char* line : {"", "active", "5/6 0 0 0 0 0 0", "active 5 0 0 0 0 0 0", "active 5/ 0 0 0 0 0 0", "active 5/6 0 0 0 0 0",
                           "active 5/6 0 0 0 0 0 1", "active 5/6 0 0 0 0 0 1 faults", "active 5/6 0 0 0 0 0 1 faults x"})
    EXPECT_EQ(dmu_parse_status(line, &status, &err), -EPROTO) << line;
  EXPECT_EQ(dmu_parse_status("active 5/6 0 0 0 0 0 0", &status, &err), 0);
}

TEST(Status, OlderProgramsGetWhatTheyKnow) {
  struct {
    dmu_status status;
  } room{};
  room.status.size = offsetof(dmu_status, faults);
  room.status.faults = 77;
  ASSERT_EQ(dmu_parse_status("suspended 1/2 0 0 0 0 9 1 faults 5", &room.status, nullptr), 0);
  EXPECT_EQ(room.status.gen, 9U);
  EXPECT_EQ(room.status.faults, 77U) << "written beyond the caller's structure";
}

TEST(Status, StatesHaveTheirWords) {
  EXPECT_STREQ(dmu_state_name(DMU_STATE_NO_DAEMON), "no_daemon");
  EXPECT_STREQ(dmu_state_name(DMU_STATE_REPLAYING), "replaying");
  EXPECT_STREQ(dmu_state_name(DMU_STATE_ACTIVE), "active");
  EXPECT_STREQ(dmu_state_name(DMU_STATE_SUSPENDED), "suspended");
  EXPECT_STREQ(dmu_state_name(99), "unknown");
}

TEST(Messages, LayoutIsTheSameOnEveryMachine) {
  EXPECT_EQ(sizeof(dmu_msg), 96U);
  EXPECT_EQ(sizeof(dmu_attach), 216U);
  EXPECT_EQ(offsetof(dmu_msg, data), 80U);
}

TEST(Messages, MapHasNoSidesUntilTheyAreNamed) {
  dmu_msg map = dmu_msg_map(7, 8, 16);
  EXPECT_EQ(map.type, static_cast<uint32_t>(DMU_MSG_MAP));
  EXPECT_EQ(map.id, 7U);
  EXPECT_EQ(map.sector, 8U);
  EXPECT_EQ(map.len, 16U);
  EXPECT_EQ(map.read_dest, DMU_DEST_NONE);
  EXPECT_EQ(map.write_dest, DMU_DEST_NONE);
  EXPECT_EQ(map.gen, 0U);

  dmu_map_read(&map, 1, 100);
  dmu_map_write(&map, 2, 200);
  dmu_map_overlay(&map, 128);
  dmu_map_push(&map, 5);
  EXPECT_EQ(map.id, 0U);
  EXPECT_EQ(map.gen, 5U);
  EXPECT_EQ(map.read_dest, 1U);
  EXPECT_EQ(map.read_sector, 100U);
  EXPECT_EQ(map.write_dest, 2U);
  EXPECT_EQ(map.write_sector, 200U);
  EXPECT_EQ(map.granule, 128U);
  EXPECT_EQ(map.flags, DMU_F_OVERLAY);
}

TEST(Messages, Others) {
  std::array<char, 1024> bytes{};
  auto address = reinterpret_cast<uintptr_t>(bytes.data());
  dmu_msg bitmap = dmu_msg_bitmap(1, 0, 2, 3, bytes.data(), 1024);
  EXPECT_EQ(bitmap.data, address);
  EXPECT_EQ(bitmap.data_len, 1024U);
  EXPECT_EQ(dmu_msg_bitmap_all(1, 0, 2, 3).flags, DMU_F_ALL);
  EXPECT_EQ(dmu_msg_bitmap_all(0, 4, 2, 3).gen, 4U);
  dmu_msg data = dmu_msg_data(9, 5, bytes.data(), 1024);
  EXPECT_EQ(data.type, static_cast<uint32_t>(DMU_MSG_DATA));
  EXPECT_EQ(data.len, 2U);
  EXPECT_EQ(dmu_msg_fail(3, ENOSPC).error, ENOSPC);
  EXPECT_EQ(dmu_msg_ack(3).type, static_cast<uint32_t>(DMU_MSG_ACK));
  EXPECT_EQ(dmu_msg_committed(12).seq, 12U);
  EXPECT_EQ(dmu_msg_invalidate(1, 8, 8).len, 8U);
  EXPECT_EQ(dmu_msg_retry(6).id, 6U);
}

TEST(Messages, FormatNamesWhatItIs) {
  std::array<char, 512> buf{};
  dmu_msg map = dmu_msg_map(7, 8, 16);
  dmu_map_read(&map, DMU_DEST_ZERO, 0);
  dmu_map_overlay(&map, 8);
  int n = dmu_msg_format(&map, buf.data(), buf.size());
  std::string text = buf.data();
  EXPECT_EQ(static_cast<size_t>(n), text.size());
  EXPECT_NE(text.find("MAP id 7 sectors 8+16"), std::string::npos) << text;
  EXPECT_NE(text.find("read zero write none"), std::string::npos) << text;
  EXPECT_NE(text.find("overlay"), std::string::npos) << text;
  map.type = 12345;
  map.flags = ~0U;
  n = dmu_msg_format(&map, buf.data(), buf.size());
  EXPECT_LT(static_cast<size_t>(n), buf.size());
  EXPECT_NE(std::string(buf.data()).find("type 12345"), std::string::npos);
}

class Send : public testing::Test {
 protected:
  Send() {
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds_.data()), 0);
    dmu_attach attach{};
    attach.size = sizeof attach;
    EXPECT_EQ(dmu_channel_adopt(fds_[0], &attach, &channel_, nullptr), 0);
    fake = FakeKernel{fds_[0], {}, {}};
  }
  ~Send() override {
    dmu_channel_close(channel_);
    close(fds_[1]);
    fake = FakeKernel{};
  }
  ssize_t send(size_t count) {
    results_.assign(count, 12345);
    std::vector<dmu_msg> msgs(count);
    return dmu_channel_send(channel_, msgs.data(), count, results_.data());
  }

  std::array<int, 2> fds_{-1, -1};
  dmu_channel* channel_ = nullptr;
  std::vector<int> results_;
};

TEST_F(Send, AllTakenAtOnce) {
  fake.answers = {3};
  EXPECT_EQ(send(3), 3);
  EXPECT_EQ(results_, (std::vector<int>{0, 0, 0}));
}

TEST_F(Send, WrongOnesAreSkippedAndNamed) {
  fake.answers = {2, -ENOENT, 1, -EINVAL};
  EXPECT_EQ(send(5), 3);
  EXPECT_EQ(results_, (std::vector<int>{0, 0, -ENOENT, 0, -EINVAL}));
  EXPECT_EQ(fake.asked, (std::vector<size_t>{5, 3, 2, 1}));
}

TEST_F(Send, NoMemoryIsTriedAgainAndInterruptsToo) {
  fake.answers = {-ENOMEM, -EINTR, 1};
  EXPECT_EQ(send(1), 1);
  fake.answers = {-ENOMEM, -ENOMEM, -ENOMEM, 1};
  EXPECT_EQ(send(2), 1);
  EXPECT_EQ(results_, (std::vector<int>{-ENOMEM, 0}));
}

TEST_F(Send, DeviceGone) {
  fake.answers = {1, -ENODEV};
  EXPECT_EQ(send(3), 1);
  EXPECT_EQ(results_, (std::vector<int>{0, -ENODEV, -ENODEV}));
  fake.answers = {-ENODEV};
  EXPECT_EQ(send(2), -ENODEV);
}

TEST_F(Send, NothingIsNothing) { EXPECT_EQ(send(0), 0); }

TEST_F(Send, ReceiveCountsMessages) {
  std::array<dmu_msg, 4> in{};
  EXPECT_EQ(dmu_channel_receive(channel_, in.data(), in.size()), -EAGAIN);
  std::array<dmu_msg, 2> out{dmu_msg_ack(1), dmu_msg_ack(2)};
  ASSERT_EQ(::send(fds_[1], out.data(), sizeof out, 0), static_cast<ssize_t>(sizeof out));
  ASSERT_EQ(dmu_channel_receive(channel_, in.data(), in.size()), 2);
  EXPECT_EQ(in[1].id, 2U);
}

TEST(Channel, WrongVersionIsNotAdopted) {
  dmu_attach attach{};
  dmu_channel* channel = nullptr;
  dmu_error err{};
  attach.size = 8;
  EXPECT_EQ(dmu_channel_adopt(0, &attach, &channel, &err), -EINVAL);
  EXPECT_EQ(err.code, -EINVAL);
}

TEST(Channel, LongKeysAreRefused) {
  dmu_channel* channel = nullptr;
  EXPECT_EQ(dmu_channel_open(std::string(DMU_KEY_MAX, 'k').c_str(), &channel, nullptr), -ENAMETOOLONG);
}

TEST(Library, ExportsNothingButItsOwn) {
  Dl_info where{};
  ASSERT_NE(dladdr(reinterpret_cast<void*>(&dmu_create), &where), 0);
  std::string command = std::string("nm -D --defined-only '") + where.dli_fname + "'";
  std::unique_ptr<FILE, int (*)(FILE*)> nm(popen(command.c_str(), "r"), pclose);
  ASSERT_TRUE(nm);
  std::array<char, 512> line{};
  int functions = 0;
  while (fgets(line.data(), line.size(), nm.get())) {
    std::array<char, 512> name{};
    char kind = 0;
    ASSERT_EQ(sscanf(line.data(), "%*s %c %511s", &kind, name.data()), 2) << line.data();
    if (kind == 'A') continue;  // the version node
    EXPECT_EQ(std::string(name.data()).rfind("dmu_", 0), 0U) << name.data();
    functions++;
  }
  EXPECT_EQ(functions, 25);
}

}  // namespace
