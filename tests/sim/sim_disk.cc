// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/sim/sim_disk.hh"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstring>
#include <utility>

#include "cowd/core/error.hh"

namespace cowd::sim {

Content::Chunk Content::fresh(uint64_t index) const {
  Chunk chunk{};
  if (!garbage_) return chunk;
  uint64_t value = index * 0x9e3779b97f4a7c15 + 1;
  for (size_t i = 0; i < kChunk; i += 8) {
    value = (value ^ value >> 29) * 0xbf58476d1ce4e5b9 + 1;
    std::memcpy(chunk.data() + i, &value, 8);
  }
  return chunk;
}

void Content::read(uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const uint64_t index = offset / kChunk, within = offset % kChunk;
    const size_t part = std::min<uint64_t>(out.size(), kChunk - within);
    const auto found = chunks_.find(index);
    const Chunk& chunk = found != chunks_.end() ? found->second : fresh(index);
    std::copy_n(chunk.begin() + within, part, out.begin());
    out = out.subspan(part);
    offset += part;
  }
}

void Content::write(uint64_t offset, std::span<const std::byte> in) {
  while (!in.empty()) {
    const uint64_t index = offset / kChunk, within = offset % kChunk;
    const size_t part = std::min<uint64_t>(in.size(), kChunk - within);
    auto found = chunks_.find(index);
    if (found == chunks_.end())
      found = chunks_.emplace(index, part == kChunk ? Chunk{} : fresh(index)).first;
    std::copy_n(in.begin(), part, found->second.begin() + within);
    in = in.subspan(part);
    offset += part;
  }
}

// Counts an operation as under way while it lives.
class SimDisk::Turn {
 public:
  explicit Turn(SimDisk& disk) : disk_(disk) {
    disk_.most_under_way_ = std::max(disk_.most_under_way_, ++disk_.under_way_);
  }
  ~Turn() { disk_.under_way_--; }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  SimDisk& disk_;
};

// From the begin of a write to its end. A device finishes what it was given, whoever asked.
class SimDisk::Writing {
 public:
  Writing(SimDisk& disk, uint64_t offset, std::span<const std::byte> in)
      : data(in.begin(), in.end()), disk_(disk), id_(disk.next_id_++), offset_(offset) {
    disk_.log(Event::Kind::write_begins, id_, offset_, data);
  }
  ~Writing() {
    if (!over_) end();
  }
  Writing(const Writing&) = delete;
  Writing& operator=(const Writing&) = delete;

  void end() {
    over_ = true;
    disk_.content_.write(offset_, data);
    disk_.log(Event::Kind::write_ends, id_);
  }
  void end_in_parts() {
    over_ = true;
    disk_.write_parts(disk_.content_, offset_, data, disk_.random_);
  }
  void end_without_room() {
    over_ = true;
    disk_.log(Event::Kind::write_is_void, id_);
  }

  const Bytes data;

 private:
  SimDisk& disk_;
  const uint64_t id_, offset_;
  bool over_ = false;
};

SimDisk::SimDisk(std::string name, uint64_t size, uint32_t block_size, bool garbage)
    : name_(std::move(name)),
      size_(size),
      block_size_(block_size),
      content_(garbage),
      recorded_(garbage) {}

Task<> SimDisk::hop() {
  const uint64_t turns = hops_ == 0 ? 0 : random_() % (hops_ + 1);
  for (uint64_t i = 0; i < turns; i++) {
    auto executor = co_await boost::asio::this_coro::executor;
    co_await boost::asio::post(executor, boost::asio::use_awaitable);
  }
  while (std::chrono::steady_clock::now() < stalled_until_) {
    boost::asio::steady_timer timer(co_await boost::asio::this_coro::executor, stalled_until_);
    co_await timer.async_wait(boost::asio::use_awaitable);
  }
}

Task<> SimDisk::read_at(uint64_t offset, std::span<std::byte> out) {
  const Turn turn(*this);
  require_valid(offset, out.size());
  counts_.reads++;
  counts_.bytes_read += out.size();
  const bool fails = fails_now(kRead);
  const bool early = chance();
  if (early) content_.read(offset, out);
  co_await hop();
  if (fails) throw Error(fail_error_, name_ + ": reading failed, as the test wants it.");
  if (!early) content_.read(offset, out);
}

Task<> SimDisk::write_at(uint64_t offset, std::span<const std::byte> in) {
  const Turn turn(*this);
  require_valid(offset, in.size());
  if (read_only_) throw Error(EROFS, name_ + " is read-only.");
  counts_.writes++;
  counts_.bytes_written += in.size();
  const bool fails = fails_now(kWrite);
  const bool full = full_;
  Writing writing(*this, offset, in);
  const bool early = chance();
  if (early && !full) write_parts(content_, offset, writing.data, random_);
  co_await hop();
  if (!std::equal(writing.data.begin(), writing.data.end(), in.begin())) buffer_changed_ = true;
  if (full) {
    writing.end_without_room();
    throw Error(ENOSPC, name_ + ": no room, as the test wants it.");
  }
  if (fails) {
    writing.end_in_parts();
    throw Error(fail_error_, name_ + ": writing failed, as the test wants it.");
  }
  writing.end();
}

Task<> SimDisk::flush() {
  const Turn turn(*this);
  counts_.flushes++;
  const uint64_t id = next_id_++;
  const bool fails = fails_now(kFlush);
  log(Event::Kind::flush_begins, id);
  co_await hop();
  log(fails ? Event::Kind::flush_fails : Event::Kind::flush_ends, id);
  if (fails) throw Error(fail_error_, name_ + ": flushing failed, as the test wants it.");
}

Task<> SimDisk::resize(uint64_t bytes) {
  const Turn turn(*this);
  if (read_only_) throw Error(EROFS, name_ + " is read-only.");
  const bool fails = fails_now(kWrite);
  co_await hop();
  if (fails) throw Error(fail_error_, name_ + ": resizing failed, as the test wants it.");
  const Bytes zeroes(block_size_);
  for (uint64_t at = size_; content_.is_garbage() && at < bytes; at += block_size_) {
    const auto part =
        std::span<const std::byte>(zeroes).first(std::min<uint64_t>(block_size_, bytes - at));
    content_.write(at, part);
    recorded_.write(at, part);
  }
  size_ = bytes;
}

void SimDisk::delay(uint64_t seed, unsigned hops) {
  random_.seed(seed);
  hops_ = hops;
}

void SimDisk::fail(uint64_t nth, int error, unsigned ops) {
  fail_in_ = nth;
  fail_error_ = error;
  fail_ops_ = ops;
  failed_ = false;
}

bool SimDisk::fails_now(Op op) {
  if (!(fail_ops_ & op) || fail_in_ == 0 || --fail_in_ != 0) return false;
  failed_ = true;
  return true;
}

void SimDisk::require_valid(uint64_t offset, uint64_t length) const {
  if (offset % block_size_ != 0 || length % block_size_ != 0 || length == 0 || offset > size_ ||
      length > size_ - offset)
    throw Error(EINVAL, name_ + ": bytes " + std::to_string(offset) + " to " +
                            std::to_string(offset + length) + " are no whole blocks of it.");
}

void SimDisk::log(Event::Kind kind, uint64_t id, uint64_t offset, std::span<const std::byte> data) {
  static uint64_t time = 0;
  if (recording_) log_.push_back({kind, id, offset, Bytes(data.begin(), data.end()), ++time});
}

size_t SimDisk::events_before(uint64_t time) const {
  const auto end = std::ranges::lower_bound(log_, time, {}, &Event::time);
  return static_cast<size_t>(end - log_.begin());
}

void SimDisk::record() {
  recorded_ = content_;
  log_.clear();
  recording_ = true;
}

void SimDisk::mark(uint64_t value) { log(Event::Kind::mark, value); }

void SimDisk::write_parts(Content& content, uint64_t offset, std::span<const std::byte> in,
                          Random& random) const {
  for (size_t at = 0; at < in.size(); at += block_size_)
    if (random() & 1) content.write(offset + at, in.subspan(at, block_size_));
}

std::vector<SimDisk::Fate> SimDisk::fates(size_t at) const {
  std::vector<Fate> writes;
  std::unordered_map<uint64_t, size_t> begun;                 // by id
  std::vector<size_t> ended;                                  // and not certain yet
  std::unordered_map<uint64_t, std::vector<size_t>> covered;  // by the flush that has
  for (size_t i = 0; i < at; i++) {
    const Event& event = log_[i];
    switch (event.kind) {
      case Event::Kind::write_begins:
        begun[event.id] = writes.size();
        writes.push_back({&event});
        break;
      case Event::Kind::write_ends:
        if (const auto found = begun.find(event.id); found != begun.end()) {
          writes[found->second].ended = true;
          ended.push_back(found->second);
        }
        break;
      case Event::Kind::write_is_void:
        if (const auto found = begun.find(event.id); found != begun.end())
          writes[found->second].is_void = true;
        break;
      // It may never end, so that the next one has to cover them too.
      case Event::Kind::flush_begins: covered[event.id] = ended; break;
      case Event::Kind::flush_ends:
        for (const size_t each : covered[event.id]) writes[each].certain |= !writes[each].doomed;
        std::erase_if(ended, [&](size_t each) { return writes[each].certain; });
        break;
      case Event::Kind::flush_fails:
        for (Fate& write : writes) write.doomed |= write.ended;
        break;
      default: break;
    }
  }
  return writes;
}

// In the order of their begins: a device never brings back what was written over.
std::shared_ptr<SimDisk> SimDisk::crash(size_t at, Survives survives, Random& random) const {
  auto after = copy();
  after->content_ = recorded_;
  for (const Fate& write : fates(at)) {
    if (write.is_void) continue;
    const uint64_t chance =
        survives == Survives::anything ? random() % 3 : survives == Survives::everything;
    if (write.certain || chance == 1)
      after->content_.write(write.event->offset, write.event->data);
    else if (chance == 2)
      write_parts(after->content_, write.event->offset, write.event->data, random);
  }
  return after;
}

Bytes SimDisk::peek(uint64_t offset, uint64_t length) const {
  Bytes bytes(length);
  content_.read(offset, bytes);
  return bytes;
}

std::shared_ptr<SimDisk> SimDisk::copy() const {
  auto other = std::make_shared<SimDisk>(name_, size_, block_size_);
  other->content_ = content_;
  return other;
}

}  // namespace cowd::sim
