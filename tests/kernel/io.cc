// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/kernel/io.hh"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <thread>

namespace dmutest {
namespace {

constexpr int kWords = 64;  // of a sector
constexpr uint64_t kChunk = 2048;

uint64_t word(Seed seed, uint64_t sector, int i) {
  return (static_cast<uint64_t>(seed) << 40) ^ (sector << 8) ^ static_cast<uint64_t>(i);
}

long range_ioctl(int fd, unsigned long request, uint64_t sector, uint64_t len) {
  uint64_t range[2] = {sector * 512, len * 512};
  return ioctl(fd, request, range) ? -errno : 0;
}

}  // namespace

Buffer::Buffer(uint64_t sectors) : data_(static_cast<uint8_t*>(aligned_alloc(4096, (sectors * 512 + 4095) / 4096 * 4096)), free), sectors_(sectors) {
  memset(data(), 0xee, sectors * 512);
}

void Buffer::fill(Seed seed, uint64_t first) {
  auto* at = reinterpret_cast<uint64_t*>(data());
  for (uint64_t s = 0; s < sectors_; s++)
    for (int i = 0; i < kWords; i++) *at++ = seed == kZeroes ? 0 : word(seed, first + s, i);
}

Seed Buffer::seed_of(uint64_t i, uint64_t first) const {
  const auto* at = reinterpret_cast<const uint64_t*>(data_.get()) + i * kWords;
  auto seed = static_cast<Seed>(at[0] >> 40);
  for (int w = 0; w < kWords; w++)
    if (at[w] != (seed == kZeroes ? 0 : word(seed, first + i, w))) return ~0U;
  return seed;
}

Io::Io(std::function<long()> work) {
  std::packaged_task<long()> task(std::move(work));
  future_ = task.get_future().share();
  std::thread(std::move(task)).detach();
}

bool Io::done() const { return future_.wait_for(Ms(0)) == std::future_status::ready; }

long Io::result(Ms limit) {
  if (future_.wait_for(limit) != std::future_status::ready) FAIL("I/O does not complete");
  return future_.get();
}

File::File(const std::string& path) : fd_(open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC)) {
  if (fd_ < 0 && (errno == EACCES || errno == EROFS)) fd_ = open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
  if (fd_ < 0) FAIL("cannot open " + path + ": " + strerror(errno));
}

File::~File() { close(fd_); }

long File::write_now(uint64_t sector, uint64_t len, Seed seed, int flags) const {
  Buffer buf(len);
  buf.fill(seed, sector);
  iovec v{buf.data(), len * 512};
  ssize_t n = pwritev2(fd_, &v, 1, static_cast<off_t>(sector * 512), flags);
  return n < 0 ? -errno : n;
}

long File::read_now(uint64_t sector, Buffer& into, int flags) const {
  iovec v{into.data(), into.sectors() * 512};
  ssize_t n = preadv2(fd_, &v, 1, static_cast<off_t>(sector * 512), flags);
  return n < 0 ? -errno : n;
}

long File::sync_now() const { return fsync(fd_) ? -errno : 0; }
long File::discard_now(uint64_t sector, uint64_t len) const { return range_ioctl(fd_, BLKDISCARD, sector, len); }
long File::zeroout_now(uint64_t sector, uint64_t len) const { return range_ioctl(fd_, BLKZEROOUT, sector, len); }

Io File::write(uint64_t sector, uint64_t len, Seed seed, int flags) const {
  return Io([this, sector, len, seed, flags] { return write_now(sector, len, seed, flags); });
}

Io File::read(uint64_t sector, uint64_t len) const {
  return Io([this, sector, len] {
    Buffer buf(len);
    return read_now(sector, buf);
  });
}

Io File::sync() const {
  return Io([this] { return sync_now(); });
}

Io File::discard(uint64_t sector, uint64_t len) const {
  return Io([this, sector, len] { return discard_now(sector, len); });
}

Io File::zeroout(uint64_t sector, uint64_t len) const {
  return Io([this, sector, len] { return zeroout_now(sector, len); });
}

void File::fill(uint64_t sector, uint64_t len, Seed seed) const {
  for (uint64_t at = 0; at < len; at += kChunk) {
    uint64_t n = std::min(kChunk, len - at);
    CHECK_EQ(write_now(sector + at, n, seed), static_cast<long>(n * 512));
  }
}

std::string File::difference(uint64_t sector, uint64_t len, Seed seed) const {
  for (uint64_t at = 0; at < len; at += kChunk) {
    Buffer buf(std::min(kChunk, len - at));
    long n = read_now(sector + at, buf);
    if (n != static_cast<long>(buf.sectors() * 512)) return "reading sector " + std::to_string(sector + at) + " gave " + std::to_string(n);
    for (uint64_t i = 0; i < buf.sectors(); i++) {
      Seed found = buf.seed_of(i, sector + at);
      if (found != seed)
        return "sector " + std::to_string(sector + at + i) + " reads as " + (found == ~0U ? "garbage" : "seed " + std::to_string(found)) +
               ", not as seed " + std::to_string(seed);
    }
  }
  return "";
}

void fill_disk(const std::string& path, uint64_t sector, uint64_t len, Seed seed) { File(path).fill(sector, len, seed); }

}  // namespace dmutest
