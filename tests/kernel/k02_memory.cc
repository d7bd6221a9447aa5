// SPDX-License-Identifier: GPL-2.0-or-later
// K2: nothing on the I/O path waits for memory that needs this I/O to complete,
// and an idle device costs little.
#include <filesystem>
#include <poll.h>
#include <sys/mman.h>
#include <linux/aio_abi.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>

#include "tests/kernel/cow.hh"

using namespace dmutest;

namespace {

uint64_t meminfo_kib(const std::string& key) {
  std::istringstream in(read_file("/proc/meminfo"));
  std::string word;
  uint64_t value = 0;
  while (in >> word)
    if (word == key + ":" && in >> value) return value;
  FAIL("no " + key + " in /proc/meminfo");
}

// A process that takes memory until hardly any is free, and keeps it in use. It
// gives some back before the kernel would have to kill it.
class Hog {
 public:
  explicit Hog(uint64_t leave_kib) {
    // Otherwise the kernel keeps more than we leave, and kills the hog before it is full.
    write_file("/proc/sys/vm/min_free_kbytes", "4096");
    // The OOM killer takes the hog, as it should, and prints a trace of it.
    const auto tree = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "../../..";
    run({(tree / "tests/lab/kernel-log").string(), "expect", "Call Trace:"});
    pid_ = fork();
    if (pid_ == 0) eat(leave_kib);
  }
  ~Hog() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  // Long: in an emulated machine each page is dear.
  void wait_until_full() const {
    eventually(__FILE__, __LINE__, "memory is full", [] { return meminfo_kib("MemFree") < 40 * 1024; }, Ms(100'000));
  }
  Hog(const Hog&) = delete;
  Hog& operator=(const Hog&) = delete;

 private:
  [[noreturn]] static void eat(uint64_t leave_kib) {
    std::vector<std::pair<void*, size_t>> eaten;
    write_file("/proc/self/oom_score_adj", "1000");
    for (;;) {
      uint64_t free_kib = meminfo_kib("MemFree");
      if (free_kib > leave_kib) {
        size_t step = free_kib > leave_kib + (128U << 10) ? 64U << 20 : 2U << 20;  // fast while there is much
        void* at = mmap(nullptr, step, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (at != MAP_FAILED) eaten.emplace_back(at, step);
      } else if (free_kib < leave_kib / 2 && !eaten.empty()) {
        munmap(eaten.back().first, eaten.back().second);
        eaten.pop_back();
      } else {
        poll(nullptr, 0, 2);
      }
    }
  }
  pid_t pid_;
};

// So many reads or writes of 4 KiB at once that no pool of the kernel holds them
// all, through the old interface for asynchronous I/O: it needs no threads.
class Flood {
 public:
  Flood(const File& file, int count, bool write) : buf_(static_cast<uint64_t>(count) * 8) {
    buf_.fill(kNew, 0);
    if (syscall(SYS_io_setup, count, &context_)) FAIL("io_setup failed");
    std::vector<iocb> blocks(static_cast<size_t>(count));
    for (int i = 0; i < count; i++) {
      iocb& b = blocks[static_cast<size_t>(i)];
      memset(&b, 0, sizeof b);
      b.aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
      b.aio_fildes = static_cast<uint32_t>(file.fd());
      b.aio_buf = reinterpret_cast<uintptr_t>(buf_.data() + i * 4096);
      b.aio_nbytes = 4096;
      b.aio_offset = i * 4096L;
      iocb* one = &b;
      CHECK_EQ(syscall(SYS_io_submit, context_, 1, &one), 1);
    }
    left_ = count;
  }
  ~Flood() {
    if (!left_) syscall(SYS_io_destroy, context_);
  }
  void wait() {
    while (left_) {
      io_event events[256];
      timespec limit{kSoon.count() / 1000, 0};
      long n = syscall(SYS_io_getevents, context_, 1, 256, events, &limit);
      if (n <= 0) FAIL(std::to_string(left_) + " of the flood's I/O never complete");
      for (long i = 0; i < n; i++) CHECK_EQ(events[i].res, 4096);
      left_ -= static_cast<int>(n);
    }
  }

 private:
  Buffer buf_;
  aio_context_t context_ = 0;
  int left_ = 0;
};

constexpr int kFlood = 2000;

}  // namespace

CASE(k02_thousands_of_bios_park_and_complete) {
  Rig rig;
  CowStore store;
  Flood flood(*rig.file, kFlood, true);  // nobody is there: all of it parks
  CHECK_EQ(rig.target->status().bios_parked, static_cast<uint64_t>(kFlood));
  Cow cow(*rig.target, store);
  flood.wait();
  CHECK_READS(*rig.file, 0, kFlood * 8, kNew);
  cow.kill();
  cow.check();
}

CASE_WITHIN(k02_completes_with_hardly_any_memory, 180'000) {
  Rig rig;
  CowStore store;
  store.granule = 64;  // so that there are copies too
  Hog hog(24 * 1024);
  hog.wait_until_full();
  Flood writes(*rig.file, kFlood, true);
  Cow cow(*rig.target, store);
  writes.wait();
  Flood reads(*rig.file, kFlood, false);
  reads.wait();
  CHECK_EQ(rig.file->sync().result(), 0);
  cow.kill();
  cow.check();
}

// Dirty page cache of the device itself: the kernel can only get memory back by
// I/O that this device and its daemon have to do.
CASE_WITHIN(k02_writeback_under_memory_pressure, 180'000) {
  Rig rig({}, 57344);
  CowStore store;
  Cow cow(*rig.target, store);
  Hog hog(24 * 1024);
  hog.wait_until_full();
  run({"dd", "if=/dev/zero", "of=" + rig.target->path(), "bs=1M", "count=28", "conv=fsync", "status=none"});
  CHECK_READS(*rig.file, 0, 57344, kZeroes);
  cow.kill();
  cow.check();
}

CASE_WITHIN(k02_restart_of_the_daemon_under_memory_pressure, 180'000) {
  Rig rig;
  CowStore store;
  Hog hog(24 * 1024);
  hog.wait_until_full();
  {
    Cow first(*rig.target, store);
    Flood flood(*rig.file, kFlood / 2, true);
    flood.wait();
    first.kill();
    first.check();
  }
  Flood flood(*rig.file, kFlood, true);
  Cow second(*rig.target, store);
  flood.wait();
  CHECK_READS(*rig.file, 0, kFlood * 8, kNew);
  second.kill();
  second.check();
}

// A device over another one of ours: where one copies, the other one does, in the same thread. It
// hangs where the two share one of kcopyd's clients.
CASE_WITHIN(k02_stacked_devices_copy_with_hardly_any_memory, 180'000) {
  Rig lower;
  CowStore lower_store, upper_store;
  lower_store.granule = upper_store.granule = 64;
  Path below(lower.target->path());
  Ram base;
  fill_disk(base.path(), 0, kSize, kBase);
  Cow lower_cow(*lower.target, lower_store);
  Target upper(kSize, {{&base, true}, {&below, false}});
  Cow upper_cow(upper, upper_store);
  File file(upper.path());
  Hog hog(24 * 1024);
  hog.wait_until_full();
  Flood flood(file, kFlood, true);
  flood.wait();
  CHECK_READS(file, 0, kFlood * 8, kNew);
  upper_cow.kill();
  upper_cow.check();
  lower_cow.kill();
  lower_cow.check();
}

// A kcopyd client alone has 512 KiB: it is made when something is copied.
CASE_WITHIN(k02_idle_devices_cost_little, 180'000) {
  constexpr int kDevices = 24;
  Ram base, cow;
  std::vector<std::unique_ptr<Target>> targets;
  std::vector<std::unique_ptr<File>> files;
  auto make = [&] {
    targets.push_back(std::make_unique<Target>(kSize, std::vector<Dest>{{&base, true}, {&cow, false}}));
    files.push_back(std::make_unique<File>(targets.back()->path()));
    Channel channel(*targets.back());
    dmu_msg map = map_plain(0, 0, kSize, 1, 0);
    dmu_map_push(&map, channel.gen);
    channel.send(map);
    CHECK_EQ(files.back()->write(0, 8, kNew).result(), 8 * 512);
  };
  make();
  run({"sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches"});
  uint64_t before = meminfo_kib("MemFree");
  for (int i = 0; i < kDevices; i++) make();
  run({"sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches"});
  uint64_t after = meminfo_kib("MemFree");
  uint64_t each = before > after ? (before - after) / kDevices : 0;
  if (each >= 512) FAIL("an idle device costs " + std::to_string(each) + " KiB");
}
