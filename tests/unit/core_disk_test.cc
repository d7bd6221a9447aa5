// SPDX-License-Identifier: GPL-2.0-or-later
// BlockDisk over regular files and, where the host has loop devices, over those; with
// both engines. Also the semaphore and off_strand().
#include <utility>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cowd/core/async_io_op.hh"
#include "cowd/core/backing.hh"
#include "cowd/core/backing_mark.hh"
#include "cowd/core/blocking.hh"
#include "cowd/core/disk.hh"
#include "cowd/core/fd.hh"
#include "cowd/core/loop.hh"
#include "cowd/core/run.hh"
#include "cowd/core/semaphore.hh"

namespace {

using namespace cowd;
namespace asio = boost::asio;

bool have_loop_devices() { return access("/dev/loop-control", R_OK | W_OK) == 0; }

class Scratch {
 public:
  explicit Scratch(uint64_t size)
      : path_(std::filesystem::temp_directory_path() /
              ("core_disk." + std::to_string(getpid()) + "." + std::to_string(++count_))) {
    std::ofstream file(path_);
    file.close();
    std::filesystem::resize_file(path_, size);
  }
  ~Scratch() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  static inline int count_ = 0;
  std::string path_;
};

std::vector<std::byte> pattern(size_t len, unsigned seed) {
  std::vector<std::byte> bytes(len);
  for (size_t i = 0; i < len; ++i)
    bytes[i] = static_cast<std::byte>((i * 31 + i / 512 + seed) & 0xff);
  return bytes;
}

int code_of(auto&& call, std::string* sentence = nullptr) {
  try {
    call();
  } catch (const Error& e) {
    if (sentence) *sentence = e.what();
    return e.code();
  }
  return 0;
}

Component file(const std::string& path) {
  Component component;
  component.path = path;
  return component;
}

class DiskTest : public testing::TestWithParam<IoEngine> {
 protected:
  void SetUp() override { aio_ = make_async_io(io_, GetParam()); }
  std::shared_ptr<BlockDisk> open(const std::string& path,
                                  BlockDisk::Open how = BlockDisk::Open::writable) {
    return BlockDisk::open(aio_, path, how);
  }

  asio::io_context io_;
  std::shared_ptr<AsyncIo> aio_;
};

// Written at odd addresses in memory, larger than one bounce buffer, and read back.
Task<> round_trip(std::shared_ptr<BlockDisk> disk, uint64_t offset, size_t len) {
  const auto data = pattern(len, static_cast<unsigned>(offset));
  std::vector<std::byte> unaligned(len + 1);
  std::memcpy(unaligned.data() + 1, data.data(), len);
  co_await disk->write_at(offset, std::span(unaligned).subspan(1));
  co_await disk->flush();
  std::vector<std::byte> back(len + 3);
  co_await disk->read_at(offset, std::span(back).subspan(3));
  EXPECT_EQ(std::memcmp(back.data() + 3, data.data(), len), 0);
}

TEST_P(DiskTest, WritesAndReadsAFile) {
  Scratch scratch(1 << 20);
  const auto disk = open(scratch.path());
  EXPECT_EQ(disk->size(), 1u << 20);
  EXPECT_FALSE(disk->read_only());
  EXPECT_EQ(disk->device(), 0u);
  run_to_end(io_, round_trip(disk, 0, 4096));
  run_to_end(io_, round_trip(disk, 8192, 300 * 1024));
}

// That it is durable the power cut of tests/power-cut shows.
TEST_P(DiskTest, WritesDurably) {
  Scratch scratch(1 << 20);
  const auto disk = open(scratch.path());
  // As one request, and as more than that.
  for (const size_t len : {size_t{4096}, size_t{300 * 1024}}) {
    std::vector<std::byte> data(len, std::byte{0x42}), found(len);
    run_to_end(io_, disk->write_durably(8192, data));
    run_to_end(io_, disk->read_at(8192, found));
    EXPECT_EQ(found, data);
  }
  std::string sentence;
  std::vector<std::byte> block(4096);
  const auto beyond = [&] { run_to_end(io_, disk->write_durably(1 << 20, block)); };
  EXPECT_EQ(code_of(beyond, &sentence), ENXIO);
  const auto locked = open(scratch.path(), BlockDisk::Open::read_only);
  EXPECT_EQ(code_of([&] { run_to_end(io_, locked->write_durably(0, block)); }, &sentence), EROFS);
}

TEST_P(DiskTest, ManyAtOnce) {
  Scratch scratch(4 << 20);
  const auto disk = open(scratch.path());
  int left = 100;
  for (unsigned i = 0; i < 100; ++i)
    asio::co_spawn(io_, round_trip(disk, i * 32768, 32768), [&](std::exception_ptr e) {
      if (e) std::rethrow_exception(e);
      --left;
    });
  io_.run();
  EXPECT_EQ(left, 0);
}

TEST_P(DiskTest, ManyAtOnceOnSeveralThreads) {
  Scratch scratch(4 << 20);
  const auto disk = open(scratch.path());
  std::atomic<int> left = 100;
  for (unsigned i = 0; i < 100; ++i)
    asio::co_spawn(io_, round_trip(disk, i * 32768, 32768), [&](std::exception_ptr e) {
      if (e) std::rethrow_exception(e);
      --left;
    });
  std::thread other([&] { io_.run(); });
  io_.run();
  other.join();
  EXPECT_EQ(left, 0);
}

TEST_P(DiskTest, RefusesWithASentence) {
  Scratch scratch(1 << 20);
  const auto disk = open(scratch.path());
  std::vector<std::byte> block(4096);
  std::string sentence;
  const auto read = [&](uint64_t offset, size_t len) {
    return code_of([&] { run_to_end(io_, disk->read_at(offset, std::span(block).first(len))); },
                   &sentence);
  };
  EXPECT_EQ(read(100, 4096), EINVAL);
  EXPECT_EQ(read(0, 100), EINVAL);
  EXPECT_EQ(read(1 << 20, 4096), ENXIO);
  EXPECT_EQ(read(~0ull - 511, 4096), ENXIO);
  EXPECT_NE(sentence.find(scratch.path()), std::string::npos);

  std::filesystem::resize_file(scratch.path(), 512 * 1024);
  EXPECT_EQ(read(768 * 1024, 4096), EIO);
  EXPECT_EQ(disk->refresh_size(), 512u * 1024);
  EXPECT_EQ(read(768 * 1024, 4096), ENXIO);

  const auto reader = open(scratch.path(), BlockDisk::Open::read_only);
  EXPECT_TRUE(reader->read_only());
  EXPECT_EQ(code_of([&] { run_to_end(io_, reader->write_at(0, block)); }), EROFS);
}

TEST_P(DiskTest, RefusesWhatIsNoDisk) {
  EXPECT_EQ(code_of([&] { open("/nonexistent/disk"); }), ENOENT);
  EXPECT_EQ(code_of([&] { open("/tmp"); }), ENOTBLK);
  EXPECT_EQ(code_of([&] { open("/dev/null"); }), ENOTBLK);
}

TEST_P(DiskTest, LivesUntilItsIoHasEnded) {
  Scratch scratch(1 << 20);
  auto disk = open(scratch.path());
  bool done = false;
  std::vector<std::byte> block(4096);
  asio::co_spawn(io_, disk->read_at(0, block), [&](std::exception_ptr) { done = true; });
  while (io_.poll_one() == 1 && !done && disk.use_count() > 0) disk.reset();
  io_.run();
  EXPECT_TRUE(done);
}

INSTANTIATE_TEST_SUITE_P(Engines, DiskTest, testing::Values(IoEngine::threads, IoEngine::automatic),
                         [](const auto& instance) {
                           return instance.param == IoEngine::threads ? "threads" : "automatic";
                         });

// Moves a block at most, and from `full` on nothing: as a file system does that has no room left.
class ShortIo : public AsyncIo {
 public:
  uint64_t full = UINT64_MAX;

  const char* engine() const override { return "short"; }

 private:
  void begin(IoOp* op) override {
    const size_t len = std::min<size_t>(op->len, 4096);
    const auto at = static_cast<off_t>(op->offset);
    if (op->kind == IoOp::Kind::read)
      op->complete(pread(op->fd, op->buffer, len, at));
    else if (op->kind == IoOp::Kind::sync)
      op->complete(0);
    else
      op->complete(op->offset < full ? pwrite(op->fd, op->buffer, len, at) : -ENOSPC);
  }
};

TEST(ShortTransfers, GoOnAndSayWhatStoppedThem) {
  Scratch scratch(1 << 20);
  asio::io_context io;
  const auto aio = std::make_shared<ShortIo>();
  const auto disk = BlockDisk::open(aio, scratch.path(), BlockDisk::Open::writable);
  std::vector<std::byte> wanted(20 * 4096), found(wanted.size());
  for (size_t i = 0; i < wanted.size(); i++) wanted[i] = std::byte(i / 512);
  run_to_end(io, disk->write_at(8192, wanted));
  run_to_end(io, disk->read_at(8192, found));
  EXPECT_TRUE(found == wanted);
  std::ranges::reverse(wanted);
  run_to_end(io, disk->write_durably(4096, wanted));
  run_to_end(io, disk->read_at(4096, found));
  EXPECT_TRUE(found == wanted);
  aio->full = 40960;
  for (const bool durably : {false, true}) {
    try {
      run_to_end(io, durably ? disk->write_durably(0, wanted) : disk->write_at(0, wanted));
      ADD_FAILURE() << "was written";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ENOSPC) << error.what();
    }
  }
}

// Does nothing for one file descriptor until it is released, and the rest at once.
class HangingIo : public AsyncIo {
 public:
  int hung_fd = -1;
  std::vector<IoOp*> held;

  void release() {
    hung_fd = -1;
    for (IoOp* op : std::exchange(held, {})) op->complete(op->len);
  }
  const char* engine() const override { return "hanging"; }

 private:
  void begin(IoOp* op) override {
    if (op->fd == hung_fd)
      held.push_back(op);
    else
      op->complete(op->len);
  }
};

TEST(HungBacking, HoldsItsOwnRequestsOnly) {
  Scratch one(1 << 20), other(1 << 20);
  asio::io_context io;
  const auto aio = std::make_shared<HangingIo>();
  const auto hung = BlockDisk::open(aio, one.path(), BlockDisk::Open::writable);
  const auto sound = BlockDisk::open(aio, other.path(), BlockDisk::Open::writable);
  aio->hung_fd = hung->fd();

  std::vector<std::byte> block(4096);
  int left = 100;
  for (int i = 0; i < 100; ++i)
    asio::co_spawn(io, hung->write_at(0, block), [&](std::exception_ptr) { --left; });
  while (io.poll() > 0) {
  }
  EXPECT_EQ(aio->held.size(), BlockDisk::kWays);
  EXPECT_EQ(left, 100);
  for (int i = 0; i < 100; ++i) run_to_end(io, sound->write_at(0, block));

  aio->release();
  io.restart();
  io.run();
  EXPECT_EQ(left, 0);
}

// In a child that may have one thread only, so that the kernel cannot make the worker that
// an fsync needs, until `allowed`. Returns the name of what went wrong, or nullptr.
const char* sync_without_a_worker(int fd) {
  rlimit any{};
  getrlimit(RLIMIT_NPROC, &any);
  const rlimit one{1, any.rlim_max};
  any.rlim_cur = any.rlim_max;
  asio::io_context io;
  int error = 0;
  auto engine = make_uring_io(io, &error);
  if (!engine) return "no io_uring";
  // No user has this number, so what it may have is what it has.
  if (setrlimit(RLIMIT_NPROC, &one) != 0) return "no limit";
  if (setresuid(54321, 54321, 54321) != 0) return "still root";
  bool allowed = false;
  const char* wrong = "no end";
  asio::steady_timer limit(io, std::chrono::milliseconds(300));
  limit.async_wait([&](auto) {
    allowed = true;
    setrlimit(RLIMIT_NPROC, &any);
  });
  auto work = [&]() -> Task<> {
    const int64_t result = co_await engine->sync(fd);
    wrong = result == -ECANCELED ? "cancelled" : result < 0 ? "failed" : nullptr;
    if (!allowed && !wrong) wrong = "no need of a worker";
  };
  asio::co_spawn(io, work, asio::detached);
  io.run();
  return wrong;
}

TEST(UringEngine, WhatTheKernelCannotBeginIsBegunLater) {
  if (geteuid() != 0) FAIL() << "to be run as root, like all of make check";
  Scratch scratch(4096);
  const int fd = open(scratch.path().c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  int said[2];
  ASSERT_EQ(pipe(said), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const char* wrong = sync_without_a_worker(fd);
    if (wrong && write(said[1], wrong, strlen(wrong)) < 0) _exit(2);
    _exit(wrong ? 1 : 0);
  }
  close(said[1]);
  char wrong[64] = "";
  EXPECT_GE(read(said[0], wrong, sizeof wrong - 1), 0);
  EXPECT_STREQ(wrong, "");
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  close(said[0]);
  close(fd);
}

class LoopTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(have_loop_devices()) << "no /dev/loop-control: modprobe loop";
    aio_ = make_async_io(io_);
  }
  asio::io_context io_;
  std::shared_ptr<AsyncIo> aio_;
};

TEST_F(LoopTest, AFileBecomesABlockDevice) {
  Scratch scratch(2 << 20);
  const Backing top = open_backing(aio_, file(scratch.path()), BackingUse::top);
  EXPECT_TRUE(top.device.starts_with("/dev/loop")) << top.device;
  EXPECT_NE(top.dev, 0u);
  EXPECT_EQ(top.disk->name(), scratch.path());
  EXPECT_EQ(top.disk->size(), 2u << 20);
  run_to_end(io_, round_trip(top.disk, 0, 65536));
  struct stat info {};
  ASSERT_EQ(stat(top.device.c_str(), &info), 0);
  EXPECT_EQ(top.dev, info.st_rdev);
}

TEST_F(LoopTest, ATopIsWrittenThroughOneDeviceOnly) {
  Scratch scratch(1 << 20);
  const auto top = LoopDevice::attach(scratch.path(), LoopDevice::Use::top);
  EXPECT_EQ(LoopDevice::find(scratch.path()), top->path());
  std::string sentence;
  EXPECT_EQ(code_of([&] { LoopDevice::attach(scratch.path(), LoopDevice::Use::top); }, &sentence),
            EBUSY);
  EXPECT_NE(sentence.find(top->path()), std::string::npos) << sentence;
  EXPECT_EQ(code_of([&] { LoopDevice::attach(scratch.path(), LoopDevice::Use::base); }), EBUSY);
  EXPECT_EQ(code_of([&] { open_backing(aio_, file(scratch.path()), BackingUse::change); }), EBUSY);
  const auto again = LoopDevice::attach(scratch.path(), LoopDevice::Use::reattach);
  EXPECT_EQ(again->path(), top->path());
}

TEST_F(LoopTest, ABaseIsShared) {
  Scratch scratch(1 << 20);
  const auto one = LoopDevice::attach(scratch.path(), LoopDevice::Use::base);
  const auto two = LoopDevice::attach(scratch.path(), LoopDevice::Use::base);
  EXPECT_EQ(one->path(), two->path());
  EXPECT_FALSE(one->shared());
  EXPECT_TRUE(two->shared());
  EXPECT_EQ(code_of([&] { BlockDisk::open(aio_, one->path(), BlockDisk::Open::writable); }), EROFS);
}

TEST_F(LoopTest, GoesAwayWithItsLastUser) {
  Scratch scratch(1 << 20);
  LoopDevice::attach(scratch.path(), LoopDevice::Use::top).reset();
  EXPECT_EQ(LoopDevice::find(scratch.path()), "");
  EXPECT_EQ(code_of([&] { LoopDevice::attach(scratch.path(), LoopDevice::Use::reattach); }),
            ENOENT);
}

// Some of what the rule for udev asks.
std::string mark_of(const std::string& path) {
  std::string said;
  std::ifstream("/run/cowd/backings.d/" + path.substr(5)) >> said;
  return said;
}

bool is_ours(const std::string& path) {
  const auto ours = own_backings();
  return std::find(ours.begin(), ours.end(), path.substr(5)) != ours.end();
}

TEST_F(LoopTest, IsMarkedForAsLongAsItIsThere) {
  Scratch scratch(1 << 20);
  auto ours = LoopDevice::attach(scratch.path(), LoopDevice::Use::top);
  const std::string path = ours->path();
  std::string sequence;
  std::ifstream("/sys/block/" + path.substr(5) + "/diskseq") >> sequence;
  EXPECT_NE(sequence, "");
  EXPECT_EQ(mark_of(path), sequence);
  EXPECT_TRUE(is_ours(path));
  release_unused_backings();
  EXPECT_EQ(mark_of(path), sequence);
  ours.reset();
  EXPECT_FALSE(is_ours(path));
  release_unused_backings();
  EXPECT_EQ(mark_of(path), "");
}

// Sets up a loop device as others do; false: somebody else was faster.
bool configure_as_others(const std::string& loop, const std::string& path, Fd& held) {
  const Fd file(open(path.c_str(), O_RDWR | O_CLOEXEC));
  held = Fd(open(loop.c_str(), O_RDWR | O_CLOEXEC));
  loop_config config{};
  config.fd = static_cast<uint32_t>(file.get());
  config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
  return ioctl(held.get(), LOOP_CONFIGURE, &config) == 0;
}

TEST_F(LoopTest, AMarkIsNotTakenForThatOfTheNextDevice) {
  Scratch scratch(1 << 20);
  Fd held;
  std::string path;
  do {
    path = LoopDevice::attach(scratch.path(), LoopDevice::Use::top)->path();
    EXPECT_NE(mark_of(path), "");
  } while (!configure_as_others(path, scratch.path(), held));
  EXPECT_NE(mark_of(path), "");
  EXPECT_FALSE(is_ours(path));
}

TEST_F(LoopTest, AMarkThatNobodyHoldsGoes) {
  BackingMark("loop4711").set();
  EXPECT_EQ(mark_of("/dev/loop4711"), "");
  std::ofstream("/run/cowd/backings.d/loop4711") << "new\n";  // of who was killed
  {
    BackingMark held("loop4712");
    held.set();
    release_unused_backings();
    EXPECT_EQ(mark_of("/dev/loop4712"), "new");
  }
  EXPECT_EQ(mark_of("/dev/loop4711"), "");
}

TEST_F(LoopTest, RefusesAnOddSize) {
  Scratch scratch(1000);
  std::string sentence;
  EXPECT_EQ(code_of([&] { LoopDevice::attach(scratch.path(), LoopDevice::Use::top); }, &sentence),
            EINVAL);
  EXPECT_NE(sentence.find("1000 bytes"), std::string::npos);
}

TEST_F(LoopTest, AClaimedDeviceIsNoTop) {
  Scratch scratch(1 << 20);
  const auto loop = LoopDevice::attach(scratch.path(), LoopDevice::Use::top);
  const int claim = ::open(loop->path().c_str(), O_RDWR | O_EXCL | O_CLOEXEC);
  ASSERT_GE(claim, 0);
  std::string sentence;
  EXPECT_EQ(code_of([&] { open_backing(aio_, file(loop->path()), BackingUse::top); }, &sentence),
            EBUSY);
  EXPECT_NE(sentence.find("lsblk"), std::string::npos);
  EXPECT_EQ(code_of([&] { open_backing(aio_, file(loop->path()), BackingUse::reattach); }), 0);
  close(claim);
  EXPECT_EQ(code_of([&] { open_backing(aio_, file(loop->path()), BackingUse::top); }), 0);
}

TEST(Backing, RefusesByNameWhatIsNotServed) {
  const Component transient = parse_spec("raw:transient@vg0").top;
  std::string sentence;
  EXPECT_EQ(code_of([&] { open_backing(nullptr, transient, BackingUse::top); }, &sentence),
            EOPNOTSUPP);
  EXPECT_NE(sentence.find(transient.text()), std::string::npos) << sentence;
  EXPECT_EQ(code_of([&] { open_backing(nullptr, file("/nonexistent"), BackingUse::top); }), ENOENT);
  EXPECT_EQ(code_of([&] { open_backing(nullptr, file("/tmp"), BackingUse::top); }), ENOTBLK);
}

TEST(Backing, TheSameByTwoNames) {
  Scratch scratch(4096);
  const std::string link = scratch.path() + ".link";
  std::filesystem::create_symlink(scratch.path(), link);
  EXPECT_TRUE(same_backing(file(scratch.path()), file(link)));
  EXPECT_FALSE(same_backing(file(scratch.path()), file("/dev/null")));
  EXPECT_EQ(backing_size(link), 4096u);
  std::filesystem::remove(link);
}

TEST(Semaphore, FirstComeFirstServed) {
  asio::io_context io;
  AsyncSemaphore semaphore(2);
  std::vector<int> order;
  int inside = 0, most = 0;
  const auto job = [&](int i) -> Task<> {
    const auto hold = co_await semaphore.acquire();
    most = std::max(most, ++inside);
    order.push_back(i);
    asio::steady_timer turn(io, std::chrono::milliseconds(1));
    co_await turn.async_wait(asio::use_awaitable);
    --inside;
  };
  for (int i = 0; i < 10; ++i) asio::co_spawn(io, job(i), asio::detached);
  io.run();
  EXPECT_EQ(most, 2);
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
}

TEST(OffStrand, RunsElsewhereAndComesBack) {
  asio::io_context io;
  const auto here = std::this_thread::get_id();
  const auto job = [&]() -> Task<int> {
    const auto there = co_await off_strand([] { return std::this_thread::get_id(); });
    EXPECT_NE(there, here);
    EXPECT_EQ(std::this_thread::get_id(), here);
    co_await off_strand([] {});
    co_return 7;
  };
  EXPECT_EQ(run_to_end(io, job()), 7);
  EXPECT_EQ(code_of([&] {
              run_to_end(io, off_strand([]() -> int { throw Error(EBUSY, "It is busy."); }));
            }),
            EBUSY);
}

TEST(RunToEnd, SaysWhenTheWorkWasStopped) {
  asio::io_context io;
  const auto job = [&]() -> Task<> {
    io.stop();
    asio::steady_timer never(io, std::chrono::hours(1));
    co_await never.async_wait(asio::use_awaitable);
  };
  EXPECT_EQ(code_of([&] { run_to_end(io, job()); }), EINTR);
}

}  // namespace
