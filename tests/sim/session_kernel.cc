// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/sim/session_kernel.hh"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "cowd/core/error.hh"
#include "libdmu/dmu.h"

namespace cowd::sim {
namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;

constexpr uint64_t kSector = 512;

dmu_msg message(uint32_t type, Range range, uint32_t flags = 0) {
  dmu_msg msg = dmu_msg_make(type, 0);
  msg.sector = range.sector;
  msg.len = range.len;
  msg.flags = flags;
  return msg;
}

Range range_of(const dmu_msg& msg) { return {msg.sector, msg.len}; }

bool overlap(Range a, Range b) { return a.sector < b.end() && b.sector < a.end(); }

Side side_of(uint32_t dest, uint64_t sector) {
  if (dest == DMU_DEST_NONE) return Side::fault();
  if (dest == DMU_DEST_ZERO) return Side::zeroes();
  return Side::at(dest, sector);
}

Extent extent_of(const dmu_msg& msg) {
  Extent extent;
  extent.range = range_of(msg);
  extent.read = side_of(msg.read_dest, msg.read_sector);
  extent.write = side_of(msg.write_dest, msg.write_sector);
  extent.granule = msg.flags & DMU_F_OVERLAY ? msg.granule : 0;
  extent.sync = msg.flags & DMU_F_SYNC;
  extent.is_volatile = msg.flags & DMU_F_VOLATILE;
  extent.uncommitted = msg.flags & DMU_F_UNCOMMITTED;
  return extent;
}

std::vector<std::byte> payload_of(const dmu_msg& msg) {
  std::vector<std::byte> bytes(msg.data_len);
  if (msg.data_len)
    std::memcpy(bytes.data(), reinterpret_cast<const void*>(msg.data), msg.data_len);
  return bytes;
}

std::string line_of(const dmu_msg& msg) {
  char line[256];
  dmu_msg_format(&msg, line, sizeof line);
  return line;
}

}  // namespace

// The daemon's end.
class SessionKernel::Line : public Channel {
 public:
  Line(SessionKernel& kernel, asio::any_io_executor executor)
      : kernel_(&kernel), generation_(kernel.gen_), news_(std::move(executor)) {
    kernel_->line_ = this;
  }
  ~Line() override {
    if (kernel_) kernel_->line_ = nullptr;
  }
  Line(const Line&) = delete;
  Line& operator=(const Line&) = delete;

  Task<> readable() override {
    while (!kernel_->readable() && !kernel_->removed_ && !cancelled_) co_await news_.wait();
  }
  void cancel() override {
    cancelled_ = true;
    news_.notify();
  }
  size_t receive(std::span<dmu_msg> messages) override {
    const size_t count = kernel_->receive(messages);
    if (count == 0 && kernel_->removed_) throw Error(ENODEV, "The device is gone.");
    return count;
  }
  void send(std::span<const dmu_msg> messages, std::span<int> results) override {
    if (kernel_->removed_) throw Error(ENODEV, "The device is gone.");
    for (size_t i = 0; i < messages.size(); i++) results[i] = -kernel_->take_message(messages[i]);
  }
  uint64_t generation() const override { return generation_; }
  void notify() { news_.notify(); }
  void close() { kernel_ = nullptr; }

 private:
  SessionKernel* kernel_;  // null: closed
  uint64_t generation_;
  SignalEvent news_;
  bool cancelled_ = false;
};

SessionKernel::SessionKernel(asio::any_io_executor executor, uint64_t seed)
    : KernelModel(nullptr, seed), executor_(std::move(executor)) {}

// --- life -------------------------------------------------------------------------------

void SessionKernel::create(const Image& image) {
  destinations_ = image.destinations();
  sectors_ = image.sectors();
}

std::unique_ptr<Channel> SessionKernel::open_channel(asio::any_io_executor executor) {
  if (line_) throw Error(EBUSY, "Another channel serves the device.");
  auto line = std::make_unique<Line>(*this, std::move(executor));
  channel_++;
  replayed_ = false;
  read_seq_ = 0;
  queue_.clear();
  asio::co_spawn(executor_, replay(channel_), [this](std::exception_ptr error) {
    if (error && violation_.empty()) violation_ = "a replay never begins";
  });
  return line;
}

void SessionKernel::close_channel() {
  if (line_) line_->close();
  line_ = nullptr;
}

void SessionKernel::remove() {
  removed_ = true;
  if (line_) line_->notify();
}

// What was under way when the channel was opened ends first, unless it waits for the daemon.
Task<> SessionKernel::replay(uint64_t channel) {
  std::vector<const Use*> before;
  for (const Use& use : uses_) before.push_back(&use);
  const auto drained = [&] {
    return std::ranges::none_of(uses_, [&](const Use& use) {
      return !use.parked && std::ranges::find(before, &use) != before.end();
    });
  };
  co_await until(drained, "what was under way when a daemon came");
  if (channel != channel_ || !line_) co_return;
  for (Uncommitted& each : uncommitted_) {
    each.unread = false;
    each.closed = true;
    dmu_msg msg = message(DMU_MSG_PROMOTED, each.told.range, DMU_F_REPLAY);
    if (each.told.seq == 0) msg.flags |= DMU_F_VOLATILE;
    msg.seq = each.told.seq;
    msg.write_dest = each.told.dest;
    msg.write_sector = each.told.dest_sector;
    enqueue({nullptr, msg});
  }
  enqueue({nullptr, dmu_msg_make(DMU_MSG_REPLAY_DONE, 0)});
  replayed_ = true;
  for (const QuestionPtr& each : questions_) ask_again(each);
}

Task<> SessionKernel::turn() {
  asio::steady_timer timer(executor_, 1ms);
  co_await timer.async_wait(asio::use_awaitable);
}

// --- to the daemon ------------------------------------------------------------------------

void SessionKernel::enqueue(Item item) {
  queue_.push_back(std::move(item));
  if (line_) line_->notify();
}

void SessionKernel::ask_again(const QuestionPtr& question) {
  question->msg.id = next_id_++;
  question->read = false;
  enqueue({question, question->msg});
}

Task<SessionKernel::QuestionPtr> SessionKernel::question(dmu_msg msg) {
  tell();
  SignalEvent changed(executor_);
  auto asked = std::make_shared<Question>();
  asked->msg = msg;
  asked->changed = &changed;
  questions_.push_back(asked);
  if (replayed_ && line_) ask_again(asked);
  while (!asked->answered) co_await changed.wait();
  asked->changed = nullptr;
  if (asked->error) throw Error(asked->error, "The daemon failed it.");
  co_return asked;
}

void SessionKernel::answered(const QuestionPtr& question, int error) {
  question->answered = true;
  question->error = error;
  questions_.remove(question);
  question->changed->notify();
}

void SessionKernel::remembered() {
  if (line_) line_->notify();
}

// Promotions are merged until they are told.
void SessionKernel::tell() {
  if (!line_ || !replayed_) return;
  for (Uncommitted& each : uncommitted_) {
    if (!each.unread) continue;
    each.unread = false;
    dmu_msg msg = message(DMU_MSG_PROMOTED, each.told.range);
    if (each.told.seq == 0) msg.flags |= DMU_F_VOLATILE;
    msg.seq = each.told.seq;
    msg.write_dest = each.told.dest;
    msg.write_sector = each.told.dest_sector;
    enqueue({nullptr, msg});
  }
}

size_t SessionKernel::receive(std::span<dmu_msg> messages) {
  size_t count = 0;
  tell();
  while (count < messages.size() && !queue_.empty()) {
    Item item = std::move(queue_.front());
    queue_.pop_front();
    if (item.question) {
      // Asked again since, or answered by a commit.
      if (item.question->answered || item.question->msg.id != item.msg.id) continue;
      item.question->read = true;
      item.question->msg.gen = gen_;
    }
    item.msg.gen = gen_;
    if (item.msg.type == DMU_MSG_PROMOTED) read_seq_ = std::max<uint64_t>(read_seq_, item.msg.seq);
    messages_++;
    if (seen) seen(true, item.msg, 0);
    messages[count++] = item.msg;
  }
  return count;
}

// --- from the daemon ----------------------------------------------------------------------

SessionKernel::QuestionPtr SessionKernel::find_question(uint64_t id) {
  for (const QuestionPtr& each : questions_)
    if (each->read && each->msg.id == id) return each;
  return nullptr;
}

int SessionKernel::take_message(const dmu_msg& msg) {
  messages_++;
  const int result = take(msg);
  if (seen) seen(false, msg, result);
  return result;
}

int SessionKernel::take(const dmu_msg& msg) {
  try {
    switch (msg.type) {
      case DMU_MSG_MAP: return take_map(msg);
      case DMU_MSG_BITMAP: return take_bitmap(msg);
      case DMU_MSG_ACK: return take_ack(msg);
      case DMU_MSG_INVALIDATE: return take_invalidate(msg);
      case DMU_MSG_COMMITTED:
        if (msg.seq > read_seq_) throw std::logic_error("a seq that was not read");
        committed(msg.seq);
        for (const QuestionPtr& each : std::list<QuestionPtr>(questions_))
          if (each->msg.type == DMU_MSG_FLUSH && each->msg.seq <= msg.seq) answered(each);
        return 0;
      default: break;
    }
    const QuestionPtr asked = find_question(msg.id);
    if (!asked) return ENOENT;
    const uint32_t type = asked->msg.type;
    if (msg.type == DMU_MSG_FAIL) {
      answered(asked, msg.error ? msg.error : EIO);
    } else if (msg.type == DMU_MSG_RETRY && type == DMU_MSG_ERROR) {
      asked->retry = true;
      answered(asked);
    } else if (msg.type == DMU_MSG_DATA && type == DMU_MSG_FAULT) {
      if (!(asked->msg.flags & DMU_F_READ) || msg.sector != asked->msg.sector ||
          msg.data_len != msg.len * kSector || msg.data_len == 0 || msg.data_len > DMU_DATA_MAX)
        throw std::logic_error("bytes that nobody asked for");
      asked->data = Data{range_of(msg), payload_of(msg)};
      answered(asked);
    } else {
      throw std::logic_error("no answer to what was asked");
    }
    return 0;
  } catch (const std::exception& error) {
    if (violation_.empty()) violation_ = std::string(error.what()) + ": " + line_of(msg);
    return EINVAL;
  }
}

int SessionKernel::take_map(const dmu_msg& msg) {
  const Extent extent = extent_of(msg);
  if (msg.flags & (DMU_F_COPY_FIRST | DMU_F_TEMPORARY))
    throw std::logic_error("COPY_FIRST and TEMPORARY are not modelled");
  if (msg.id == 0) {
    if (msg.gen != gen_) return ESTALE;
    install(extent, false, extent.range, false);
    return 0;
  }
  const QuestionPtr asked = find_question(msg.id);
  if (!asked) return ENOENT;
  const Range range = range_of(asked->msg);
  const bool leaf = asked->msg.flags & DMU_F_LEAF;
  const bool read = asked->msg.type == DMU_MSG_FAULT && asked->msg.flags & DMU_F_READ;
  const Side& side = read ? extent.read : extent.write;
  if (leaf || side.kind == Side::Kind::none) throw std::logic_error("not the side asked for");
  if (range.sector < extent.range.sector || range.sector >= extent.range.end())
    throw std::logic_error("an answer that does not begin where it was asked");
  if (asked->msg.type == DMU_MSG_DISCARD) {
    check(extent);
  } else if (asked->msg.type == DMU_MSG_FAULT || asked->msg.type == DMU_MSG_ZERO) {
    install(extent, true, range, is_stale(*asked));
  } else {
    throw std::logic_error("a MAP for what is no FAULT, DISCARD or ZERO");
  }
  asked->mapped = true;
  answered(asked);
  return 0;
}

int SessionKernel::take_bitmap(const dmu_msg& msg) {
  Bitmap bitmap{range_of(msg), payload_of(msg), (msg.flags & DMU_F_ALL) != 0};
  if (msg.id == 0) {
    if (msg.gen != gen_) return ESTALE;
    load_bits(bitmap);
    return 0;
  }
  const QuestionPtr asked = find_question(msg.id);
  if (!asked) return ENOENT;
  if (!(asked->msg.flags & DMU_F_LEAF) || !(range_of(asked->msg) == bitmap.range))
    throw std::logic_error("bits that nobody asked for");
  load_bits(bitmap);
  answered(asked);
  return 0;
}

int SessionKernel::take_ack(const dmu_msg& msg) {
  const QuestionPtr asked = find_question(msg.id);
  if (!asked) return ENOENT;
  const Range range = range_of(asked->msg);
  switch (asked->msg.type) {
    case DMU_MSG_FLUSH: committed(asked->msg.seq); break;
    case DMU_MSG_DONE:
      std::erase_if(uncommitted_, [&](const Uncommitted& each) {
        return each.told.seq != 0 && each.told.seq <= asked->msg.seq &&
               range.sector <= each.told.range.sector && each.told.range.end() <= range.end();
      });
      break;
    case DMU_MSG_ZERO: drop(range); break;
    case DMU_MSG_DISCARD: break;
    default: throw std::logic_error("an ACK for what needs more");
  }
  answered(asked);
  return 0;
}

int SessionKernel::take_invalidate(const dmu_msg& msg) {
  const Range range = range_of(msg);
  if (range.len == 0 || range.end() > sectors_) throw std::logic_error("not in the disk");
  drop(range);
  // What was read and not answered comes again, so that its answer is not from before; who asked
  // for bits looks again, as there may be no overlay any more.
  for (const QuestionPtr& each : std::list<QuestionPtr>(questions_)) {
    if (each->msg.type != DMU_MSG_FAULT || !overlap(range_of(each->msg), range)) continue;
    if (each->msg.flags & DMU_F_LEAF)
      answered(each);
    else if (each->read)
      ask_again(each);
  }
  asio::co_spawn(executor_, tell_drained(channel_, msg.id, range),
                 [this](std::exception_ptr error) {
                   if (error && violation_.empty()) violation_ = "an INVALIDATE never ends";
                 });
  return 0;
}

Task<> SessionKernel::tell_drained(uint64_t channel, uint64_t id, Range range) {
  co_await drained(range);
  if (channel == channel_ && line_) enqueue({nullptr, dmu_msg_make(DMU_MSG_INVALIDATED, id)});
}

// --- what a guest's I/O asks ----------------------------------------------------------------

Task<> SessionKernel::ask(Range range, Access access) {
  faults_++;
  const uint32_t flags = access == Access::write ? DMU_F_WRITE : DMU_F_READ;
  const QuestionPtr asked = co_await question(message(DMU_MSG_FAULT, range, flags));
  data_ = asked->data;
  data_answers_ += data_.has_value();
}

Task<> SessionKernel::ask_leaf(KeptPtr overlay, uint64_t sector) {
  faults_++;
  const uint32_t flags = DMU_F_READ | DMU_F_LEAF;
  co_await question(message(DMU_MSG_FAULT, leaf_of(overlay, sector), flags));
}

Task<> SessionKernel::ask_discard(Range range) {
  co_await question(message(DMU_MSG_DISCARD, range));
}

Task<bool> SessionKernel::ask_zero(Range range) {
  const QuestionPtr asked = co_await question(message(DMU_MSG_ZERO, range));
  co_return !asked->mapped;
}

// FLUSH; the destinations have been flushed.
Task<> SessionKernel::commit(uint64_t seq, bool) {
  dmu_msg msg = dmu_msg_make(DMU_MSG_FLUSH, 0);
  msg.seq = seq;
  co_await question(msg);
}

Task<> SessionKernel::done(const Extent& map, Range range, uint64_t seq) {
  dmu_msg msg = message(DMU_MSG_DONE, range);
  msg.write_dest = map.write.dest;
  msg.write_sector = map.write.sector + (range.sector - map.range.sector);
  msg.seq = seq;
  co_await question(msg);
}

Task<bool> SessionKernel::put(Use& use, uint32_t dest, uint64_t sector,
                              std::span<const std::byte> data) {
  const uint64_t gen = gen_;
  for (;;) {
    try {
      co_await disk(dest).write_at(sector * kSector, data);
      co_return true;
    } catch (const Error& error) {
      if (error.code() != ENOSPC) throw;
    }
    dmu_msg msg = message(DMU_MSG_ERROR, use.range);
    msg.write_dest = dest;
    msg.write_sector = sector;
    msg.error = ENOSPC;
    use.parked = true;
    co_await question(msg);
    use.parked = false;
    if (gen != gen_) co_return false;
  }
}

}  // namespace cowd::sim
