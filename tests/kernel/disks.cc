// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/kernel/disks.hh"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <sstream>
#include <vector>

#include "tests/kernel/case.hh"
#include "tests/kernel/rescue.hh"

namespace dmutest {
namespace {

constexpr int kRams = 16;
constexpr uint64_t kThinChunk = 128;  // sectors

std::string unique_name(const std::string& what) {
  static int count = 0;
  return rescue::kPrefix + what + "-" + std::to_string(getpid()) + "-" + std::to_string(count++);
}

void need_rams() {
  if (access("/sys/module/brd", F_OK) == 0) return;
  run({"modprobe", "brd", "rd_nr=" + std::to_string(kRams), "rd_size=" + std::to_string(Ram::kSectors / 2), "max_part=0"});
}

const std::string kNullb = "/sys/kernel/config/nullb";

void need_null_blk() {
  if (access("/sys/module/null_blk", F_OK) != 0) run({"modprobe", "null_blk", "nr_devices=0"});
  if (access(kNullb.c_str(), F_OK) != 0 && mount("configfs", "/sys/kernel/config", "configfs", 0, nullptr))
    FAIL("cannot mount configfs");
}

}  // namespace

std::string Disk::sys() const {
  struct ::stat st {};
  if (::stat(path_.c_str(), &st)) FAIL("no device " + path_);
  return "/sys/dev/block/" + std::to_string(major(st.st_rdev)) + ":" + std::to_string(minor(st.st_rdev)) + "/";
}

uint64_t Disk::sectors() const {
  uint64_t bytes = 0;
  int fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes)) FAIL("no size of " + path_);
  close(fd);
  return bytes / 512;
}

uint64_t Disk::stat(int field) const {
  std::istringstream in(read_file(sys() + "stat"));
  uint64_t value = 0;
  for (int i = 0; i < field; i++) in >> value;
  return value;
}

std::string Disk::queue(const std::string& file) const {
  std::string text = read_file(sys() + "queue/" + file);
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

Ram::Ram() {
  need_rams();
  // udev may have one open for a moment; then the next is as good.
  EVENTUALLY(claim());
}

// The lock keeps other Rams away; dm's own claim on one that an earlier case could
// not give back is seen by O_EXCL.
bool Ram::claim() {
  for (int i = 0; i < kRams; i++) {
    path_ = "/dev/ram" + std::to_string(i);
    int free = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_EXCL);
    if (free < 0) continue;
    close(free);
    fd_ = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd_ >= 0 && flock(fd_, LOCK_EX | LOCK_NB) == 0) return true;
    close(fd_);
  }
  fd_ = -1;
  return false;
}

Ram::~Ram() { close(fd_); }

Null::Null(uint64_t mib) {
  need_null_blk();
  std::string name = unique_name("null");
  config_ = kNullb + "/" + name;
  if (mkdir(config_.c_str(), 0755)) FAIL("cannot make " + config_);
  auto set = [this](const char* key, const std::string& value) { write_file(config_ + "/" + key, value); };
  set("size", std::to_string(mib));
  set("memory_backed", "1");
  set("discard", "1");
  set("cache_size", "8");
  set("power", "1");
  std::string index = read_file(config_ + "/index");
  path_ = "/dev/nullb" + index.substr(0, index.find('\n'));
  if (access(path_.c_str(), F_OK) != 0) path_ = "/dev/" + name;  // since 6.4 it has the folder's name
  EVENTUALLY(access(path_.c_str(), F_OK) == 0);
}

Null::~Null() {
  try {
    write_file(config_ + "/power", "0");
  } catch (const Failure&) {
    // The report of the case says what is wrong; this only tidies up.
  }
  rmdir(config_.c_str());
}

void Null::make_bad(uint64_t first, uint64_t last) {
  write_file(config_ + "/badblocks", "+" + std::to_string(first) + "-" + std::to_string(last));
}

Loop::Loop() : file_("/dev/shm/" + unique_name("loop")) {
  run({"modprobe", "loop"});
  run({"truncate", "-s", "32M", file_});
  path_ = run({"losetup", "--find", "--show", file_});
  path_.erase(path_.find('\n'));
}

Loop::~Loop() {
  int status = 0;
  run({"losetup", "--detach", path_}, &status);
  unlink(file_.c_str());
}

Scsi::Scsi(const std::vector<std::string>& options) {
  if (access("/sys/module/scsi_debug", F_OK) == 0) FAIL("scsi_debug is still loaded");
  std::vector<std::string> load{"modprobe", "scsi_debug"};
  load.insert(load.end(), options.begin(), options.end());
  run(load);
  const std::string block = "ls -d /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/* 2>/dev/null || true";
  EVENTUALLY(!(device_ = run({"sh", "-c", block})).empty());
  device_.erase(device_.find('\n'));
  path_ = "/dev/" + device_.substr(device_.rfind('/') + 1);
  EVENTUALLY(access(path_.c_str(), F_OK) == 0);
  run({"udevadm", "settle"});  // it looks at each new disk
}

Scsi::~Scsi() {
  int status = 1;
  try {
    // udev may still look at it.
    EVENTUALLY((run({"modprobe", "-r", "scsi_debug"}, &status), status == 0));
  } catch (const Failure&) {
    // The next one finds the module loaded.
  }
}

// In jiffies, of which Debian's kernels have 250 a second.
void Scsi::slow(Ms each) { write_file("/sys/bus/pseudo/drivers/scsi_debug/delay", std::to_string(each.count() / 4)); }

void Scsi::pull() { write_file(device_ + "/device/delete", "1"); }

Dm::Dm(const std::string& what, const std::string& table) : name_(unique_name(what)) {
  path_ = "/dev/mapper/" + name_;
  run({"dmsetup", "create", name_, "--table", table});
}

Dm::~Dm() {
  int status = 0;
  release();
  run({"dmsetup", "remove", name_}, &status);
}

void Dm::hold() { run({"dmsetup", "suspend", "--noflush", "--nolockfs", name_}); }

void Dm::release() {
  int status = 0;
  run({"dmsetup", "resume", name_}, &status);
}

void Dm::reload(const std::string& table) {
  run({"dmsetup", "load", name_, "--table", table});
  run({"dmsetup", "resume", name_});
}

void Dm::message(const std::string& text) { run({"dmsetup", "message", name_, "0", text}); }

std::string linear(uint64_t start, uint64_t len, const Disk& on, uint64_t at) {
  return std::to_string(start) + " " + std::to_string(len) + " linear " + on.path() + " " + std::to_string(at) + "\n";
}

std::string error(uint64_t start, uint64_t len) { return std::to_string(start) + " " + std::to_string(len) + " error\n"; }

std::unique_ptr<Dm> linear_over(const Disk& on) {
  return std::make_unique<Dm>("linear", linear(0, on.sectors(), on, 0));
}

PartlyHeld::PartlyHeld(const Disk& on, uint64_t start, uint64_t len)
    : part_(std::make_unique<Dm>("part", linear(0, len, on, start))) {
  uint64_t end = start + len;
  std::string table = start ? linear(0, start, on, 0) : "";
  table += linear(start, len, *part_, 0);
  table += linear(end, on.sectors() - end, on, end);
  whole_ = std::make_unique<Dm>("whole", table);
}

std::string Thin::pool_table(uint64_t room) const {
  return "0 " + std::to_string(room) + " thin-pool " + meta_.path() + " " + data_.path() + " " + std::to_string(kThinChunk) +
         " 0 1 error_if_no_space\n";
}

Thin::Thin(uint64_t room) {
  run({"modprobe", "dm_thin_pool"});
  run({"dd", "if=/dev/zero", "of=" + meta_.path(), "bs=4096", "count=1", "conv=fsync", "status=none"});
  pool_ = std::make_unique<Dm>("pool", pool_table(room));
  pool_->message("create_thin 0");
  thin_ = std::make_unique<Dm>("thin", "0 131072 thin " + pool_->path() + " 0\n");
}

Thin::~Thin() = default;

void Thin::grow(uint64_t room) { pool_->reload(pool_table(room)); }

}  // namespace dmutest
