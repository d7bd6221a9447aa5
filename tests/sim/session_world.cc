// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/sim/session_world.hh"

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <utility>

#include "cowd/core/error.hh"
#include "cowd/core/plugin_loader.hh"
#include "formats/common/bytes.hh"
#include "formats/common/whole_blocks.hh"
#include "libdmu/dmu.h"
#include "tests/sim/run.hh"
#include "tests/sim/virtual_time.hh"

namespace cowd::sim {
namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;

constexpr uint64_t kSector = 512;
constexpr uint64_t kKiB = 1024, kMiB = 1 << 20;
// Nothing that a guest asks for may take longer, with all that the world does to it.
constexpr auto kPatience = 20min;

// As cowd loads it.
const FormatDescriptor& plugin(const std::string& name) {
  static PluginLoader loader({"build/plugins"});
  return loader.load(name);
}

}  // namespace

const std::vector<SessionVariety>& session_varieties() {
  using enum Durability;
  static const std::vector<SessionVariety> all = {
      {"dscow", "dscow", {}, 2 * kMiB + 1024, kMiB + 512},
      {"dscow, always", "dscow", {}, 2 * kMiB, 3 * kMiB, 512, always},
      {"dscow, transient", "dscow", {}, 2 * kMiB, kMiB, 512, transient},
      {"dscow, 64K", "dscow", {{"granule", "64K"}}, 4 * kMiB, 4 * kMiB, 4096},
      {"qcow2", "qcow2", {}, 3 * kMiB, 2 * kMiB},
      {"qcow2, 4K, lazy refcounts",
       "qcow2",
       {{"cluster_size", "4K"}, {"lazy_refcounts", "on"}},
       2 * kMiB + 512},
      {"qcow2, always", "qcow2", {{"cluster_size", "16K"}}, 2 * kMiB, kMiB, 4096, always},
      {"qcow2, subclusters",
       "qcow2",
       {{"cluster_size", "64K"}, {"extended_l2", "on"}},
       3 * kMiB + 512,
       kMiB + 1536},
      {"qcow2, old", "qcow2", {{"cluster_size", "4K"}, {"compat", "0.10"}}, 2 * kMiB, kMiB},
      {"qcow2, data file", "qcow2", {{"data_file", "data.raw"}}, 2 * kMiB},
      {"qcow", "qcow", {}, 2 * kMiB},
      {"vhd", "vhd", {{"block", "64K"}}, 2 * kMiB},
      {"vmdk", "vmdk", {}, 2 * kMiB},
      {"raw", "raw", {}, 2 * kMiB},
  };
  return all;
}

SessionCounts& SessionCounts::operator+=(const SessionCounts& other) {
  operations += other.operations;
  disk_operations += other.disk_operations;
  messages += other.messages;
  machine_crashes += other.machine_crashes;
  daemon_crashes += other.daemon_crashes;
  hand_overs += other.hand_overs;
  detaches += other.detaches;
  crashes_in_recovery += other.crashes_in_recovery;
  failures += other.failures;
  stalls += other.stalls;
  full_disks += other.full_disks;
  steps += other.steps;
  return *this;
}

// --- the daemon -----------------------------------------------------------------------------

// One life of cowd, as far as one device is concerned (Device). Destroyed at any moment: killed.
class SessionWorld::Cowd : public SessionObserver {
 public:
  enum class End { running, stopped, gone, failed };

  explicit Cowd(SessionWorld& world) : world_(world) {
    asio::co_spawn(io_, serve(), [this](std::exception_ptr error) {
      if (error) fail(error);
    });
  }

  bool step() { return io_.step(); }
  End end() const { return end_; }
  const std::string& why() const { return why_; }
  bool replayed_once() const { return active_; }
  bool serves() const { return active_ && !stopping_; }

  void stop() {
    if (!session_ || stopping_) return;
    stopping_ = true;
    spawn(session_->stop());
  }
  // As Device::detach() once the dm device is suspended.
  void detach() { spawn(leave()); }

  void replayed() override { active_ = true; }
  void event(const std::string& type, const std::string& sentence, const std::string&) override {
    if (type == "kernel-error") why_ = sentence;
    if (type == "kernel-error") end_ = End::failed;
  }
  void no_space() override {}

 private:
  void spawn(Task<> task) {
    asio::co_spawn(io_, std::move(task), [this](std::exception_ptr error) {
      if (error) fail(error);
    });
  }

  void fail(const std::exception_ptr& error) {
    end_ = End::failed;
    try {
      std::rethrow_exception(error);
    } catch (const Error& e) {
      why_ = e.what();
    } catch (const std::exception& e) {
      why_ = std::string("not an Error: ") + e.what();
    }
  }

  Task<> open(bool reattach) {
    OpenRequest request;
    request.top = world_.top_;
    if (world_.format_.wants_base) request.base = world_.base_;
    request.durability = world_.variety_.durability;
    request.reattach = reattach;
    request.host_id = world_.host_;
    request.boot_id = world_.boot_;
    request.references = world_.files_;
    request.invalidate = [this](Range range) -> Task<> {
      if (session_) co_await session_->invalidate(range);
    };
    image_ = co_await world_.format_.open(std::move(request));
  }

  Task<> serve() {
    SessionKernel& kernel = *world_.kernel_;
    const bool reattach = kernel.created();
    if (!reattach && world_.begun_) {
      // A cowd that died in an attach before there was a device: what it claimed is given up.
      co_await open(true);
      co_await image_->close();
      image_.reset();
    }
    if (!reattach) {
      co_await make_room();
      world_.begun_ = true;
    }
    co_await open(reattach);
    if (!reattach) {
      require_whole_blocks(*image_);
      kernel.create(*image_);
    }
    auto channel = kernel.open_channel(io_.get_executor());
    session_ = std::make_shared<Session>(io_.get_executor(), std::move(channel), *image_,
                                         SessionSettings(), *this, "disk");
    const Session::End how = co_await session_->run();
    session_.reset();
    if (how == Session::End::device_gone) {
      co_await image_->close();
      cut();
    }
    end_ = how == Session::End::device_gone ? End::gone : End::stopped;
  }

  Task<> make_room() {
    if (!world_.format_.room) co_return;
    const uint64_t room = co_await world_.format_.room(world_.top_);
    if (room > world_.top_->size())
      world_.top_->set_size(round_up(room, world_.top_->block_size()));
  }

  void cut() {
    const auto to = [](SimDisk& disk, uint64_t bytes) {
      if (bytes && bytes < disk.size()) disk.set_size(round_up(bytes, disk.block_size()));
    };
    to(*world_.top_, image_->used_bytes());
    for (const Image::Length& each : image_->used_lengths())
      for (const auto& disk : world_.disks())
        if (disk.get() == each.disk) to(*disk, each.bytes);
  }

  Task<> leave() {
    co_await session_->commit_all();
    world_.kernel_->remove();
  }

  SessionWorld& world_;
  End end_ = End::running;
  std::string why_;
  bool active_ = false, stopping_ = false;
  std::unique_ptr<Image> image_;
  std::shared_ptr<Session> session_;
  Reactor io_;  // goes first, with all that runs on it
};

// --- the world ------------------------------------------------------------------------------

SessionWorld::SessionWorld(const SessionVariety& variety, uint64_t seed)
    : variety_(variety),
      format_(plugin(variety.format)),
      random_(seed),
      files_(std::make_shared<Files>("raw", plugin("raw").open)) {
  make_image();
  make_machine();
}

// What runs goes before what it runs on.
SessionWorld::~SessionWorld() {
  drop_daemon();
  machine_.reset();
}

std::vector<std::shared_ptr<SimDisk>> SessionWorld::disks() const {
  std::vector<std::shared_ptr<SimDisk>> all{top_};
  for (const auto& [name, disk] : files_->disks)
    if (disk != base_) all.push_back(disk);
  return all;
}

void SessionWorld::make_image() {
  Options options = variety_.options;
  CreateRequest request;
  uint64_t length = variety_.format == "raw" ? variety_.bytes : 0;
  if (format_.store_size) length = format_.store_size(variety_.bytes, options);
  // A file, save where nothing reads as it was never written.
  const bool garbage = variety_.format == "dscow";
  top_ = std::make_shared<SimDisk>("top", length, variety_.block_size, garbage);
  files_->disks.clear();
  if (variety_.base) {
    base_ = std::make_shared<SimDisk>("base.raw", variety_.base, 512);
    base_->set_read_only(true);
    if (format_.wants_base) {
      request.base = base_;
    } else {
      files_->disks["base.raw"] = base_;
      options["backing_file"] = "base.raw";
      options["backing_fmt"] = "raw";
    }
  }
  if (options.count("data_file"))
    files_->disks[options["data_file"]] =
        std::make_shared<SimDisk>("data", variety_.block_size, variety_.block_size, false);
  request.top = top_;
  request.size = variety_.bytes;
  request.options = options;
  request.references = files_;
  run(format_.create(request));
  use_disks();
  leaked_ = begun_ = false;
  beneath_.clear();
  if (base_) beneath_ = base_->peek(0, std::min(variety_.base, variety_.bytes));
}

void SessionWorld::use_disks() {
  for (const auto& disk : disks()) {
    disk->record();
    disk->delay(random_(), 1 + random_() % 6);
  }
}

// Switched on. Nobody is there yet.
void SessionWorld::make_machine() {
  drop_daemon();
  machine_.reset();
  kernel_.reset();
  machine_ = std::make_unique<Reactor>();
  kernel_ = std::make_unique<SessionKernel>(machine_->get_executor(), random_());
  if (traced_) trace();
  processors_ = 0;
  begun_ = false;
  cowd_starts_ = virtual_time();
}

void SessionWorld::spawn(Task<> task) {
  processors_++;
  asio::co_spawn(*machine_, std::move(task), [this](std::exception_ptr error) {
    processors_--;
    try {
      if (error) std::rethrow_exception(error);
    } catch (const std::exception& e) {
      if (failure_.empty()) failure_ = e.what();
    }
  });
}

// Of a store that is worth nothing any more.
void SessionWorld::new_disk() {
  finish_counts();
  make_machine();
  make_image();
  guest_ = std::make_unique<Guest>(*kernel_, variety_.bytes / kSector, beneath_);
}

void SessionWorld::play() {
  guest_ = std::make_unique<Guest>(*kernel_, variety_.bytes / kSector, beneath_);
  const uint64_t episodes = 3 + random_() % 4;
  for (uint64_t i = 0; i < episodes; i++) play_episode();
}

void SessionWorld::play_episode() {
  plan();
  const uint64_t parts = 1 + random_() % 3;
  const uint64_t unit = variety_.block_size / kSector;
  const uint64_t length = guest_->sectors() / parts / unit * unit;
  for (uint64_t i = 0; i < parts; i++) {
    const Range part{i * length, length};
    spawn(processor(part, 10 + static_cast<int>(random_() % 40)));
  }
  if (!go_on([this] { return processors_ == 0; }, true)) return;
  if (random_() % 3 == 0) return crash();
  detach();
}

// --- what happens ---------------------------------------------------------------------------

void SessionWorld::trace() {
  traced_ = true;
  kernel_->seen = [this](bool to_daemon, const dmu_msg& msg, int result) {
    char line[256];
    dmu_msg_format(&msg, line, sizeof line);
    say((to_daemon ? "    kernel: " : "    cowd: ") + std::string(line) +
        (result ? " errno " + std::to_string(result) : ""));
  };
}

void SessionWorld::say(const std::string& what) const {
  if (!traced_) return;
  const auto now = std::chrono::duration_cast<std::chrono::milliseconds>(virtual_time());
  std::printf("step %llu, %lld ms: %s\n", static_cast<unsigned long long>(counts_.steps),
              static_cast<long long>(now.count()), what.c_str());
}

// Early ones, so that they meet each other and what follows from them, and late ones.
void SessionWorld::plan() {
  const uint64_t span = random_() % 3 ? 2000 : 100;
  next_event_ = counts_.steps + 1 + random_() % span;
}

bool SessionWorld::is_recovering() const {
  return !cowd_ || (kernel_->created() && !cowd_->replayed_once());
}

template <typename Done>
bool SessionWorld::go_on(Done done, bool events) {
  progress_ = virtual_time();
  const uint64_t crashes = counts_.machine_crashes;
  while (!done()) {
    if (events && counts_.steps >= next_event_) something_happens();
    if (counts_.machine_crashes != crashes) return false;
    step();
    if (!failure_.empty()) throw std::logic_error(failure_);
    if (!kernel_->violation().empty()) throw std::logic_error(kernel_->violation());
    if (virtual_time() - progress_ > kPatience)
      throw std::logic_error("a bio without an owner: nothing ends any more, " +
                             std::to_string(kernel_->questions()) + " questions are open");
  }
  return true;
}

// One handler of the machine or of cowd; where there is none time goes by.
bool SessionWorld::step() {
  counts_.steps++;
  if (full_until_.count() && virtual_time() >= full_until_) {
    full_until_ = 0ns;
    for (const auto& disk : disks()) disk->set_full(false);
  }
  if (!cowd_ && virtual_time() >= cowd_starts_) cowd_ = std::make_unique<Cowd>(*this);
  if (cowd_ && cowd_->end() != Cowd::End::running) daemon_ends();
  const bool machine_first = random_() & 1;
  bool busy = machine_first && machine_->step();
  if (!busy && cowd_) busy = cowd_->step();
  if (!busy && !machine_first) busy = machine_->step();
  if (busy) idle_ = 0ns;
  if (!busy) let_time_pass(idle_ = std::clamp<std::chrono::nanoseconds>(idle_ * 2, 200us, 20ms));
  return busy;
}

// Whatever of it is left, its files are closed.
void SessionWorld::drop_daemon() {
  if (kernel_) kernel_->close_channel();
  cowd_.reset();
}

void SessionWorld::daemon_ends() {
  const Cowd::End end = cowd_->end();
  if (end == Cowd::End::gone) return;  // who waits for it looks
  say("cowd ends: " + cowd_->why());
  if (end == Cowd::End::failed && !faulty_)
    throw std::logic_error("cowd failed though nothing else did: " + cowd_->why());
  leaked_ |= end == Cowd::End::failed;
  drop_daemon();
  cowd_starts_ = virtual_time() + (end == Cowd::End::failed ? 1s : 0s);
}

void SessionWorld::kill_daemon() {
  counts_.daemon_crashes++;
  say("cowd is killed");
  counts_.crashes_in_recovery += is_recovering();
  leaked_ = true;
  drop_daemon();
  cowd_starts_ = virtual_time() + std::chrono::milliseconds(random_() % 2000);
}

void SessionWorld::something_happens() {
  plan();
  const auto all = disks();
  SimDisk& disk = *all[random_() % all.size()];
  switch (random_() % 12) {
    case 0:
    case 1:
    case 2:
    case 3: kill_daemon(); break;
    case 4:
    case 5: crash(); break;
    case 6:
      if (cowd_ && cowd_->replayed_once()) {
        counts_.hand_overs++;
        say("cowd is asked to stop");
        cowd_->stop();
      }
      break;
    case 7:
      counts_.stalls++;
      say(disk.name() + " stalls");
      disk.stall(std::chrono::steady_clock::now() + std::chrono::milliseconds(random_() % 40000));
      break;
    case 8:
      counts_.full_disks++;
      say("disks are full");
      faulty_ = true;
      full_until_ = virtual_time() + std::chrono::milliseconds(random_() % 20000);
      for (const auto& each : all) each->set_full(true);
      break;
    case 9:
    case 10:
      counts_.failures++;
      say(disk.name() + " is to fail");
      faulty_ = true;
      leaked_ = true;
      disk.fail(1 + random_() % 40, EIO, SimDisk::kRead | SimDisk::kWrite);
      break;
    default:
      if (cowd_ && cowd_->replayed_once()) kernel_->forget();
  }
}

// --- crashes --------------------------------------------------------------------------------

void SessionWorld::crash() {
  for (;;) {
    counts_.machine_crashes++;
    say("the machine crashes");
    counts_.crashes_in_recovery += is_recovering();
    leaked_ = true;
    boot_ = "boot-" + std::to_string(++boots_);
    if (variety_.durability == Durability::transient) return new_disk();
    std::vector<size_t> at;
    const auto before = disks();
    for (const auto& disk : before) at.push_back(disk->log().size());
    finish_counts();
    make_machine();
    const auto survives = std::array{Survives::anything, Survives::anything, Survives::nothing,
                                     Survives::everything}[random_() % 4];
    for (size_t i = 0; i < before.size(); i++) {
      const auto after = before[i]->crash(at[i], survives, random_);
      if (before[i] == top_) top_ = after;
      for (auto& [name, disk] : files_->disks)
        if (disk == before[i]) disk = after;
    }
    use_disks();
    full_until_ = 0ns;
    check_image(false);
    if (recover()) return;
  }
}

// The guest finds what it must; false: another crash came before it had.
bool SessionWorld::recover() {
  faulty_ = false;
  const bool again = random_() % 3 == 0;
  const uint64_t stop = counts_.steps + (again ? random_() % 1500 : UINT64_MAX / 2);
  const uint64_t mark = guest_->marks();
  std::optional<Bytes> found;
  Bytes whole;
  spawn([](SessionWorld& world, uint64_t of, std::optional<Bytes>& all) -> Task<> {
    co_await world.guest_->verify_crash(*world.kernel_, of);
    all = co_await world.kernel_->read(0, world.guest_->sectors());
  }(*this, mark, found));
  uint64_t next_kill = counts_.steps + 1 + random_() % 2000;
  if (random_() % 2) next_kill = UINT64_MAX;
  go_on(
      [&] {
        if (counts_.steps >= next_kill) {
          kill_daemon();
          next_kill = UINT64_MAX;
        }
        return found.has_value() || counts_.steps >= stop;
      },
      false);
  if (!found) return false;
  // What is there now stays.
  beneath_ = std::move(*found);
  guest_ = std::make_unique<Guest>(*kernel_, variety_.bytes / kSector, beneath_);
  go_on([this] { return processors_ == 0; }, false);
  return true;
}

// A copy, for a check may take what belongs to nobody.
void SessionWorld::check_image(bool clean) {
  if (!format_.check) return;
  CheckRequest request;
  request.top = top_->copy();
  if (format_.wants_base) request.base = base_;
  request.references = files_;
  // After a crash refcounts that may be lazy can be set right, and then nothing is left over.
  const bool lazy = variety_.options.count("lazy_refcounts");
  if (lazy && !clean) {
    request.repair = true;
    run(format_.check(request));
    request.repair = false;
  }
  const CheckResult result = run(format_.check(request));
  if (result.errors || (lazy && result.leaks && !clean))
    throw std::logic_error((clean ? "after a detach: " : "after a crash: ") +
                           result.findings.at(0));
  if (clean && !leaked_ && result.leaks)
    throw std::logic_error("left over, though nothing went wrong: " + result.findings.at(0));
}

void SessionWorld::finish_counts() {
  counts_.messages += kernel_->messages();
  for (const auto& disk : disks()) {
    counts_.disk_operations += disk->counts().all();
    disk->reset_counts();
  }
}

// The clean end, of a disk that is well; the next attach is perhaps another host's.
void SessionWorld::detach() {
  full_until_ = 0ns;
  for (const auto& disk : disks()) {
    disk->set_full(false);
    disk->fail(0, 0);
    disk->stall({});
  }
  spawn(insist([this]() -> Task<> { co_await guest_->verify(); }));
  // One that was asked to stop takes no more requests: the next one does it.
  go_on([this] { return processors_ == 0 && cowd_ && cowd_->serves(); }, false);
  faulty_ = false;
  cowd_->detach();
  go_on([this] { return cowd_->end() == Cowd::End::gone; }, false);
  counts_.detaches++;
  say("detached");
  check_image(true);
  finish_counts();
  host_ = random_() % 2 ? "host-a" : "host-b";
  if (variety_.durability == Durability::transient) return new_disk();
  make_machine();
  guest_->use(*kernel_);
}

// --- the guest ------------------------------------------------------------------------------

// What fails is done again, as a guest's file system or its user would.
template <typename Operation>
Task<> SessionWorld::insist(Operation operation) {
  for (;;) {
    bool failed = false;
    std::string why;
    try {
      co_await operation();
    } catch (const Error& error) {
      failed = true;
      why = error.what();
    }
    if (!failed) break;
    if (!faulty_) throw std::logic_error("an operation failed though no disk did: " + why);
    asio::steady_timer timer(*machine_, 50ms);
    co_await timer.async_wait(asio::use_awaitable);
  }
  counts_.operations++;
  progress_ = virtual_time();
}

Task<> SessionWorld::processor(Range part, int steps) {
  asio::steady_timer timer(*machine_);
  while (!kernel_->created()) {
    timer.expires_after(1ms);
    co_await timer.async_wait(asio::use_awaitable);
  }
  uint64_t next = part.sector;
  for (int i = 0; i < steps; i++) co_await one_step(part, next);
}

Task<> SessionWorld::one_step(Range part, uint64_t& next) {
  const uint64_t unit = variety_.block_size / kSector;
  const auto somewhere = [&](uint64_t most) -> Range {
    const uint64_t sector = part.sector + random_() % part.len / unit * unit;
    const uint64_t len = round_up(1 + random_() % most, unit);
    return {sector, std::min(len, part.end() - sector)};
  };
  Guest& guest = *guest_;
  Range range = somewhere(random_() % 4 ? 24 : 300);
  const uint64_t what = random_() % 16;
  if (traced_)
    say("operation " + std::to_string(what) + " of " + std::to_string(range.sector) + " to " +
        std::to_string(range.end()));
  switch (what) {
    case 0:
    case 1:
    case 2: co_await insist([&] { return guest.flush(); }); break;
    case 3: co_await insist([&] { return guest.zero(range); }); break;
    case 4: co_await insist([&] { return guest.discard(range); }); break;
    case 5:
    case 6: co_await insist([&] { return guest.verify(range); }); break;
    case 7:
    case 8:  // a sequential writer
      if (next + 16 > part.end()) next = part.sector;
      range = {next, std::min<uint64_t>(16, part.end() - next)};
      next = range.end();
      co_await insist([&] { return guest.write(range); });
      break;
    default: co_await insist([&] { return guest.write(range); });
  }
}

}  // namespace cowd::sim
