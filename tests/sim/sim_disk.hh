// SPDX-License-Identifier: GPL-2.0-or-later
// A disk in memory with the manners of a real one, all of it repeatable by seed:
//
//   - what was never written reads as garbage (or zeroes), sparse up to any size;
//   - a write is visible from some moment between its begin and its end;
//   - operations end late and in any order, so coroutines interleave (delay());
//   - the n-th operation fails, a failed write having written anything between
//     nothing and all (fail()); all stand still for a while (stall()); writes find no
//     room (set_full());
//   - a write whose coroutine is destroyed, as its program is killed, is done by then;
//   - record() keeps a log of begins and ends, from which crash() makes the
//     disk as it may be found after a power cut at any point of the log.
//
// What a crash leaves: a write is certain if it had ended before a flush began that has
// ended. Any other may be there, or not, or in part, in units of block_size.
// A flush that fails makes none of the writes before it certain, for good: such a
// device may have dropped them.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "formats/plugin.hh"

namespace cowd::sim {

using Bytes = std::vector<std::byte>;
using Random = std::mt19937_64;

// Bytes of a sparse disk; no I/O, no rules.
class Content {
 public:
  explicit Content(bool garbage) : garbage_(garbage) {}
  void read(uint64_t offset, std::span<std::byte> out) const;
  void write(uint64_t offset, std::span<const std::byte> in);
  bool is_garbage() const { return garbage_; }

 private:
  static constexpr uint64_t kChunk = 4096;
  using Chunk = std::array<std::byte, kChunk>;
  Chunk fresh(uint64_t index) const;

  bool garbage_;
  std::unordered_map<uint64_t, Chunk> chunks_;
};

struct Event {
  enum class Kind {
    write_begins,
    write_ends,
    write_is_void,
    flush_begins,
    flush_ends,
    flush_fails,
    mark
  } kind;
  uint64_t id = 0;  // of the operation; of a mark: what the test gave
  uint64_t offset = 0;
  Bytes data;
  uint64_t time = 0;  // its number among the events of all disks
};

struct Counts {
  uint64_t reads = 0, writes = 0, flushes = 0;
  uint64_t bytes_read = 0, bytes_written = 0;
  uint64_t all() const { return reads + writes + flushes; }
};

enum class Survives { nothing, everything, anything };

class SimDisk : public Disk {
 public:
  enum Op : unsigned { kRead = 1, kWrite = 2, kFlush = 4, kAny = 7 };

  SimDisk(std::string name, uint64_t size, uint32_t block_size = 512, bool garbage = true);

  Task<> read_at(uint64_t offset, std::span<std::byte> out) override;
  Task<> write_at(uint64_t offset, std::span<const std::byte> in) override;
  Task<> flush() override;
  // As a file: what is new reads as zeroes. Counts as a write for fail().
  Task<> resize(uint64_t bytes) override;
  uint64_t size() const override { return size_; }
  uint32_t block_size() const override { return block_size_; }
  bool read_only() const override { return read_only_; }
  const std::string& name() const override { return name_; }

  // From here on operations take up to `hops` turns of the event loop.
  void delay(uint64_t seed, unsigned hops);
  // The nth (from 1) operation of the kinds in `ops` from now on fails.
  void fail(uint64_t nth, int error, unsigned ops = kAny);
  bool has_failed() const { return failed_; }
  // No operation ends before.
  void stall(std::chrono::steady_clock::time_point until) { stalled_until_ = until; }
  void set_full(bool value) { full_ = value; }
  void set_read_only(bool value) { read_only_ = value; }
  void set_size(uint64_t size) { size_ = size; }

  // The log begins here, with everything before it certain.
  void record();
  void mark(uint64_t value);
  const std::vector<Event>& log() const { return log_; }
  // How many of its events were before that moment.
  size_t events_before(uint64_t time) const;
  // After a power cut before event `at` of the log.
  std::shared_ptr<SimDisk> crash(size_t at, Survives survives, Random& random) const;

  // Without I/O: for tests that look or damage.
  Bytes peek(uint64_t offset, uint64_t length) const;
  void poke(uint64_t offset, std::span<const std::byte> in) { content_.write(offset, in); }
  // A disk with the same content and nothing else of this one.
  std::shared_ptr<SimDisk> copy() const;

  const Counts& counts() const { return counts_; }
  void reset_counts() { counts_ = {}; }
  uint64_t under_way() const { return under_way_; }
  uint64_t most_under_way() const { return most_under_way_; }
  // Whether a buffer was changed while it was being written.
  bool buffer_changed() const { return buffer_changed_; }

 private:
  class Turn;
  class Writing;
  // Of a write in the log.
  struct Fate {
    const Event* event;
    bool ended = false;
    bool certain = false;
    bool is_void = false;  // there was no room for it
    bool doomed = false;   // a flush after it has failed
  };
  std::vector<Fate> fates(size_t at) const;
  Task<> hop();
  bool chance() { return random_() & 1; }
  bool fails_now(Op op);
  void require_valid(uint64_t offset, uint64_t length) const;
  void log(Event::Kind kind, uint64_t id, uint64_t offset = 0,
           std::span<const std::byte> data = {});
  void write_parts(Content& content, uint64_t offset, std::span<const std::byte> in,
                   Random& random) const;

  const std::string name_;
  uint64_t size_;
  const uint32_t block_size_;
  bool read_only_ = false;
  Content content_;
  Content recorded_;  // as it was at record()
  bool recording_ = false;
  std::vector<Event> log_;
  Random random_{1};
  unsigned hops_ = 0;
  uint64_t fail_in_ = 0;
  int fail_error_ = 0;
  unsigned fail_ops_ = 0;
  bool failed_ = false;
  std::chrono::steady_clock::time_point stalled_until_{};
  bool full_ = false;
  uint64_t next_id_ = 1;
  Counts counts_;
  uint64_t under_way_ = 0;
  uint64_t most_under_way_ = 0;
  bool buffer_changed_ = false;
};

}  // namespace cowd::sim
