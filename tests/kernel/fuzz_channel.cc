// SPDX-License-Identifier: GPL-2.0-or-later
// Fuzzing of the channel, as root and from the right daemon's place: whatever is said,
// no bio is left without an end, the kernel says nothing, and a right daemon that comes
// afterwards serves the device as if nothing had been.
//
// A run is made of rounds. In each, guests do I/O on a device while daemons say garbage
// (garbage.hh), their channel is closed under them and replaced, some are killed, and
// the device is suspended, resumed, reloaded, removed; then the device is taken down,
// or healed and checked. A round follows from its seed as far as threads let it.
//
//	FUZZ_MESSAGES	so many for the whole program (default: 120,000)
//	FUZZ_SEED	of the first round of each case; the next rounds count on (1)
//	FUZZ_ROUNDS	no more than so many of a case
//
// On a kernel with fault injection, memory of the module and I/O of the destinations
// fail in half of the rounds.
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "tests/kernel/cow.hh"
#include "tests/kernel/garbage.hh"
#include "tests/kernel/target.hh"

using namespace dmutest;

namespace {

constexpr uint64_t kMost = 40000;   // sectors of the largest device: two leaves of one-sector granules
constexpr uint64_t kLeast = 16384;
constexpr uint64_t kRound = 8000;   // messages
constexpr int kGuests = 6;
constexpr int kDaemons = 2;          // that share a channel
constexpr int kCases = 5;
constexpr Ms kEnd{120'000};         // what must end, ends within this

uint64_t setting(const char* name, uint64_t otherwise) {
  const char* text = getenv(name);
  return text ? strtoull(text, nullptr, 0) : otherwise;
}

// The deadline of a case: for the millions of a long run.
Ms deadline() { return Ms(120'000 + setting("FUZZ_MESSAGES", 120'000) * 2); }

// What was done, also by daemons that are processes of their own.
struct Counts {
  std::atomic<uint64_t> messages, taken, reads, io, io_failed, devices, daemons, killed, checks;
};

Counts& counts() {
  static auto* shared = static_cast<Counts*>(
      mmap(nullptr, sizeof(Counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  return *shared;
}

// ------------------------------------------------------------- channels ---

int unbound(int flags = O_NONBLOCK) { return open("/dev/" DMU_DEVICE_NAME, O_RDWR | O_CLOEXEC | flags); }

int attach(int fd, const std::string& key) {
  dmu_attach a{};
  a.size = sizeof a;
  a.abi_major = DMU_ABI_MAJOR;
  strncpy(a.key, key.c_str(), sizeof a.key - 1);
  return ioctl(fd, DMU_ATTACH, &a) ? -errno : 0;
}

// An attached channel; -1 if there is none to be had soon: the last one may be in use
// for a moment.
int attached(const std::string& key, int flags = O_NONBLOCK) {
  int fd = unbound(flags);
  for (int i = 0; fd >= 0 && i < 50; i++) {
    int r = attach(fd, key);
    if (!r) {
      counts().daemons++;
      return fd;
    }
    if (r != -EBUSY) break;
    poll(nullptr, 0, 2);
  }
  if (fd >= 0) close(fd);
  return -1;
}

// Messages, all of a batch though some are refused. False when the channel is of no use.
bool say(int fd, Garbage& garbage, const std::vector<dmu_msg>& batch) {
  for (size_t at = 0; at < batch.size();) {
    ssize_t n = write(fd, &batch[at], (batch.size() - at) * sizeof(dmu_msg));
    int error = n < 0 ? -errno : 0;
    if (error == -ENODEV || error == -ENOTCONN) return false;
    size_t taken = n > 0 ? static_cast<size_t>(n) / sizeof(dmu_msg) : 0;
    counts().taken += taken;
    for (size_t i = 0; i < taken; i++) garbage.told(batch[at + i], 0);
    at += taken;
    counts().messages += taken;
    if (at == batch.size()) break;
    if (n < 0) {  // else its errno comes with the next call
      garbage.told(batch[at++], error);
      counts().messages++;
    }
  }
  return true;
}

void hear(int fd, Garbage& garbage) {
  Random& random = garbage.random();
  dmu_msg in[33];
  size_t bytes = (1 + random.below(32)) * sizeof(dmu_msg);
  if (random.one_in(8)) bytes += random.below(sizeof(dmu_msg));
  ssize_t n = read(fd, in, bytes);
  if (n <= 0) return;
  counts().reads++;
  for (size_t i = 0; i < static_cast<size_t>(n) / sizeof(dmu_msg); i++) garbage.heard(in[i]);
}

// Calls that are wrong whatever is in them.
void odd_call(int fd, Garbage& garbage) {
  Random& random = garbage.random();
  const Payload& payload = garbage.payload();
  auto* wrong = reinterpret_cast<void*>(payload.wrong(random));
  dmu_msg one = garbage.next();
  switch (random.below(6)) {
    case 0:
      for (ssize_t n = read(fd, wrong, 2 * sizeof one), at = 0; at < n; at += static_cast<ssize_t>(sizeof one))
        garbage.heard(static_cast<dmu_msg*>(wrong)[at / static_cast<ssize_t>(sizeof one)]);  // it was not so wrong
      break;
    case 1: (void)!read(fd, &one, random.below(sizeof one)); break;
    case 2: (void)!write(fd, &one, random.below(sizeof one)); break;
    case 3: (void)!write(fd, wrong, sizeof(dmu_msg) * 2); break;
    case 4: {
      // The last of three ends where nothing is.
      uint8_t* at = payload.end() - 3 * sizeof one + 8;
      for (size_t i = 0; i < 2; i++) memcpy(at + i * sizeof one, &one, sizeof one);
      (void)!write(fd, at, 3 * sizeof one);
      break;
    }
    default: {
      iovec v[2] = {{&one, sizeof one}, {payload.begin(), random.below(2 * sizeof one)}};
      (void)!writev(fd, v, 2);
      break;
    }
  }
}

// A daemon that says garbage, until `left` messages have been said.
void garble(int fd, Garbage& garbage, const std::function<bool()>& on) {
  Random& random = garbage.random();
  for (uint64_t turn = 1; on(); turn++) {
    if (random.one_in(2)) {
      pollfd p{fd, POLLIN, 0};
      poll(&p, 1, static_cast<int>(random.below(3)));
    }
    hear(fd, garbage);
    if (random.one_in(20)) odd_call(fd, garbage);
    std::vector<dmu_msg> batch(1 + random.below(random.one_in(16) ? 128 : 8));
    for (dmu_msg& msg : batch) msg = garbage.next();
    bool useful = say(fd, garbage, batch);
    if (turn % 32 == 0) useful = useful && say(fd, garbage, garbage.mercy());
    if (!useful) poll(nullptr, 0, 1);
  }
}

// ------------------------------------------------------ fault injection ---

constexpr const char* kDebug = "/sys/kernel/debug/";
constexpr uint64_t kTimes = 1'000'000'000;

class Faults {
 public:
  static bool possible() {
    return access("/sys/kernel/debug/failslab", F_OK) == 0 && access("/sys/kernel/debug/fail_make_request", F_OK) == 0;
  }
  explicit Faults(const std::vector<const Disk*>& disks) {
    for (const Disk* disk : disks) {
      std::string name = std::filesystem::canonical(disk->path()).filename();
      switches_.push_back("/sys/block/" + name + "/make-it-fail");
    }
    for (const char* cache : {"dmu_extent", "dmu_leaf", "dmu_promotion"})
      if (std::string file = std::string("/sys/kernel/slab/") + cache + "/failslab"; access(file.c_str(), F_OK) == 0)
        switches_.push_back(file);
    for (const std::string& file : switches_) write_file(file, "1");
    set("failslab", 30, "cache-filter");
    set("fail_make_request", 3, nullptr);
  }
  ~Faults() {
    for (const char* what : {"failslab", "fail_make_request"}) {
      injected += kTimes - std::stoull(read_file(kDebug + std::string(what) + "/times"));
      write_file(kDebug + std::string(what) + "/probability", "0");
    }
    for (const std::string& file : switches_) write_file(file, "0");
  }
  Faults(const Faults&) = delete;
  Faults& operator=(const Faults&) = delete;

  static inline uint64_t injected = 0;

 private:
  static void set(const std::string& what, int percent, const char* filter) {
    std::string dir = kDebug + what + "/";
    write_file(dir + "verbose", "0");
    write_file(dir + "interval", "1");
    write_file(dir + "times", std::to_string(kTimes));
    if (filter) write_file(dir + filter, "Y");
    if (what == "failslab") write_file(dir + "ignore-gfp-wait", "N");
    write_file(dir + "probability", std::to_string(percent));
  }
  std::vector<std::string> switches_;
};

// ---------------------------------------------------------------- rounds ---

// Disks of a case: made once.
struct Ground {
  virtual ~Ground() = default;
  virtual void begin() {}      // of a round
  virtual void make_room() {}  // and of its check
  std::unique_ptr<Disk> under[2];
  Disk* base = nullptr;
  Disk* cow = nullptr;
};

template <typename Kind>
struct Two : Ground {
  Two() {
    for (auto& disk : under) disk = std::make_unique<Kind>();
    base = under[0].get();
    cow = under[1].get();
  }
};

// Volumes: what LVM makes.
struct Volumes : Two<Ram> {
  Volumes() {
    for (int i = 0; i < 2; i++) volume[i] = linear_over(*under[i]);
    base = volume[0].get();
    cow = volume[1].get();
  }
  std::unique_ptr<Dm> volume[2];
};

// A thin disk that is soon full; there is room again when the device is to be right.
struct NoSpace : Ground {
  NoSpace() {
    under[0] = std::make_unique<Ram>();
    base = under[0].get();
  }
  void begin() override {
    thin.reset();
    thin = std::make_unique<Thin>(8192);
    cow = &thin->disk();
  }
  void make_room() override { thin->grow(Ram::kSectors); }
  std::unique_ptr<Thin> thin;
};

class Round {
 public:
  Round(Ground& ground, uint64_t seed);
  void run();

 private:
  void guest(uint64_t seed);
  void daemon(uint64_t seed);
  void tick();
  void operate();
  void change_daemon(Random& random);
  void kill_a_daemon(Random& random);
  void abuse(Random& random);
  void tables(Random& random);
  void end_by_force();
  void end_by_mercy();
  void end_at_last_close();
  void begin_mercy();
  void mercy();
  void end_mercy();
  void join_guests();
  void check();
  std::vector<Dest> dests() const { return {{ground_.base, true}, {ground_.cow, false}}; }
  void start(std::vector<std::thread>& where, std::function<void()> work);

  Ground& ground_;
  uint64_t seed_;
  Random random_;
  uint64_t sectors_;
  Target::Tune tune_;
  std::unique_ptr<Target> target_;
  std::unique_ptr<File> file_;
  int slot_;  // the daemons' channel: one number, whatever file it is
  uint64_t until_;  // counts().messages
  std::atomic<bool> garbage_over_{false}, guests_over_{false}, ticking_{true}, mercy_over_{false}, operating_{true};
  std::atomic<int> guests_running_{kGuests}, daemons_running_{kDaemons};
  std::vector<std::thread> guests_, daemons_, others_, mercy_;
};

Round::Round(Ground& ground, uint64_t seed) : ground_(ground), seed_(seed), random_(seed) {
  sectors_ = random_.of({kLeast, kMost});
  uint32_t extents = random_.of<uint32_t>({0, 16, 64, 1024}), uncommitted = random_.of<uint32_t>({0, 1, 32, 1024});
  uint32_t no_daemon = random_.of<uint32_t>({DMU_NO_DAEMON_DEFAULT, DMU_NO_DAEMON_FAIL});
  tune_ = [extents, uncommitted, no_daemon](dmu_spec& spec) {
    spec.max_extents = extents;
    spec.max_uncommitted = uncommitted;
    spec.no_daemon = no_daemon;
    spec.discard_granularity = 4096;
    spec.write_zeroes = 1;
  };
  ground_.begin();
  target_ = std::make_unique<Target>(sectors_, dests(), tune_);
  file_ = std::make_unique<File>(target_->path());
  slot_ = unbound();
  until_ = counts().messages + kRound;
}

void Round::start(std::vector<std::thread>& where, std::function<void()> work) {
  where.emplace_back([work = std::move(work)] {
    try {
      work();
    } catch (const std::exception& e) {
      fprintf(stderr, "%s\n", e.what());
      abort();
    }
  });
}

// I/O of any kind, as long as the round lasts; only that it ends matters.
void Round::guest(uint64_t seed) {
  Random random(seed);
  while (!guests_over_) {
    uint64_t len = random.one_in(4) ? 1 + random.below(1024) : 1ULL << random.below(7);
    uint64_t sector = random.one_in(2) ? random.below(sectors_ - len) : random.below((sectors_ - len) / 8) * 8;
    auto seed_of_data = static_cast<Seed>(4 + random.below(100));
    long r = 0;
    switch (random.below(12)) {
      case 0: r = file_->sync_now(); break;
      case 1: r = file_->discard_now(sector, len); break;
      case 2: r = file_->zeroout_now(sector, len); break;
      case 3: r = file_->write_now(sector, len, seed_of_data, RWF_DSYNC); break;
      case 4: r = file_->write_now(sector, len, seed_of_data, random.of({RWF_NOWAIT, RWF_HIPRI})); break;
      case 5:
      case 6:
      case 7: r = file_->write_now(sector, len, seed_of_data); break;
      default: {
        Buffer buffer(len);
        r = file_->read_now(sector, buffer, random.of({0, 0, 0, RWF_NOWAIT, RWF_HIPRI}));
      }
    }
    counts().io++;
    if (r < 0) counts().io_failed++;
  }
}

void Round::daemon(uint64_t seed) {
  Garbage garbage(seed, sectors_, ground_.cow->sectors());
  garble(slot_, garbage, [this] { return !garbage_over_; });
}

// Reads that block are interrupted now and then.
void Round::tick() {
  while (ticking_) {
    for (std::thread& thread : daemons_) pthread_kill(thread.native_handle(), SIGUSR1);
    poll(nullptr, 0, 20);
  }
}

// The file goes away under those who use it; then there is another, or none for a while.
void Round::change_daemon(Random& random) {
  int none = unbound();
  dup2(none, slot_);
  close(none);
  poll(nullptr, 0, static_cast<int>(random.below(4)));
  int next = attached(target_->name(), random.of({0, O_NONBLOCK, O_NONBLOCK, O_NONBLOCK}));
  if (next < 0) return;
  dup2(next, slot_);
  close(next);
}

// One that is a process of its own, killed in the middle of a word.
void Round::kill_a_daemon(Random& random) {
  int none = unbound();
  dup2(none, slot_);
  close(none);
  uint64_t seed = random.any();
  pid_t parent = getpid(), child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int fd = getppid() == parent ? attached(target_->name()) : -1;
    if (fd < 0) _exit(1);
    Garbage garbage(seed, sectors_, ground_.cow->sectors());
    garble(fd, garbage, [] { return true; });
  }
  poll(nullptr, 0, static_cast<int>(random.below(30)));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  counts().killed++;
  change_daemon(random);
}

// What else can be done to an open file, and what cannot.
void Round::abuse(Random& random) {
  dmu_attach a{};
  int other = -1;
  switch (random.below(9)) {
    case 0:
      for (int i = 0; i < 16; i++) ioctl(slot_, _IOC(random.below(4), DMU_IOC_MAGIC, random.below(256), random.below(1024)), &a);
      break;
    case 1: ioctl(slot_, DMU_ATTACH, nullptr); break;
    case 2:  // a second channel, and one that is bound already
      other = unbound();
      attach(other, target_->name());
      attach(slot_, target_->name());
      break;
    case 3: {  // noise instead of an attach
      uint64_t words[sizeof a / 8];
      for (uint64_t& word : words) word = random.one_in(2) ? 0 : random.any();
      memcpy(&a, words, sizeof a);
      if (random.one_in(2)) a.size = sizeof a;
      if (random.one_in(2)) a.abi_major = DMU_ABI_MAJOR;
      if (random.one_in(2)) a.flags = DMU_ATTACH_BY_DEV;
      ioctl(other = unbound(), DMU_ATTACH, &a);
      break;
    }
    case 4:
      for (int prot : {PROT_READ, PROT_READ | PROT_WRITE, PROT_EXEC})
        if (void* at = mmap(nullptr, 4096, prot, random.of({MAP_SHARED, MAP_PRIVATE}), slot_, 0); at != MAP_FAILED)
          FAIL("the channel can be mapped");
      break;
    case 5:
      lseek(slot_, static_cast<off_t>(random.any() >> 1), SEEK_SET);
      (void)!pread(slot_, &a, sizeof a, 4096);
      (void)!ftruncate(slot_, 0);
      fsync(slot_);
      break;
    case 6: fcntl(slot_, F_SETFL, random.of({0, O_NONBLOCK, O_APPEND | O_NONBLOCK, O_NONBLOCK | O_ASYNC})); break;
    case 7: {
      pollfd p{slot_, static_cast<short>(random.any()), 0};
      poll(&p, 1, 1);
      break;
    }
    default: {  // a copy that outlives the number
      other = dup(slot_);
      change_daemon(random);
      break;
    }
  }
  if (other >= 0) close(other);
}

// Another table, a wrong one, or one that is loaded and not used.
void Round::tables(Random& random) {
  Disk* base = ground_.base;
  Disk* cow = ground_.cow;
  std::vector<Dest> to = dests();
  switch (random.below(5)) {
    case 0: to = {{base, true}, {cow, false}, {base, true}}; break;
    case 1: to = {{base, true}, {cow, true}}; break;
    case 2: to = {{base, true}}; break;
    default: break;
  }
  uint64_t size = random.one_in(4) ? kLeast / 2 : sectors_;
  int status = 0;
  switch (random.below(4)) {
    case 0: target_->load(size, to, tune_); break;
    case 1: dmutest::run({"dmsetup", "clear", target_->name()}, &status); break;
    case 2:
      dmutest::run({"dmsetup", "load", target_->name(), "--table", "0 " + std::to_string(size) + " userspace " +
           random.of<std::string>({target_->name(), "another"}) + " " +
           random.of<std::string>({"0 0", "1 max_extents 2 1", "2 discard_granularity 4095 2", "0 1 /dev/null ro", "99"}) + " " +
           base->path() + random.of<std::string>({" ro", " rx", ""})}, &status);
      break;
    default: target_->reload(size, to, random.of<uint32_t>({0, DMU_NOFLUSH}), tune_);
  }
}

// The admin, as long as garbage is said.
void Round::operate() {
  Random random(seed_ ^ 0xad);
  change_daemon(random);
  while (!garbage_over_ && counts().messages < until_) {
    poll(nullptr, 0, static_cast<int>(random.below(20)));
    counts().devices++;
    dmu_status status{};
    status.size = sizeof status;
    switch (random.below(12)) {
      case 0:
      case 1:
        target_->suspend(random.of<uint32_t>({DMU_NOFLUSH, DMU_NOFLUSH | DMU_SKIP_LOCKFS, 0, DMU_SKIP_LOCKFS}));
        poll(nullptr, 0, static_cast<int>(random.below(20)));
        if (random.one_in(3)) target_->load(sectors_, dests(), tune_);
        if (random.one_in(3)) change_daemon(random);
        target_->resume();
        break;
      case 2: tables(random); break;
      case 3: target_->remove(); break;  // it is in use
      case 4: dmu_get_status(target_->name().c_str(), &status, nullptr); break;
      case 5: kill_a_daemon(random); break;
      case 6:
      case 7:
      case 8: change_daemon(random); break;
      default: abuse(random);
    }
  }
  target_->resume();
  operating_ = false;
}

// A daemon that ends all that waits, one way or the other.
void Round::mercy() {
  int fd = -1;
  while (!mercy_over_) {
    if (fd < 0) fd = attached(target_->name());
    pollfd p{fd, POLLIN, 0};
    poll(&p, 1, 10);
    dmu_msg in[32];
    ssize_t n = read(fd, in, sizeof in);
    for (ssize_t i = 0; i < n / static_cast<ssize_t>(sizeof(dmu_msg)); i++) {
      dmu_msg out = dmu_msg_fail(in[i].id, in[i].id % 3 ? 0 : ENOSPC);
      if (in[i].type == DMU_MSG_PROMOTED)
        out = dmu_msg_committed(in[i].seq);
      else if (in[i].type == DMU_MSG_INVALIDATED || in[i].type == DMU_MSG_REPLAY_DONE)
        continue;
      else if (in[i].type == DMU_MSG_FAULT && in[i].id % 2 && !(in[i].flags & DMU_F_LEAF))
        out = map_plain(in[i].id, in[i].sector, in[i].len, 1, in[i].sector);
      else if (in[i].type == DMU_MSG_FLUSH || in[i].type == DMU_MSG_DONE)
        out = dmu_msg_ack(in[i].id);
      (void)!write(fd, &out, sizeof out);
    }
  }
  if (fd >= 0) close(fd);
}

void Round::begin_mercy() {
  start(mercy_, [this] { mercy(); });
}

void Round::end_mercy() {
  mercy_over_ = true;
  mercy_[0].join();
}

void Round::join_guests() {
  guests_over_ = true;
  eventually(__FILE__, __LINE__, "the I/O of all guests has ended", [this] { return guests_running_ == 0; }, kEnd);
  for (std::thread& thread : guests_) thread.join();
}

// All I/O fails from now on, and ends; whatever daemons say or do not say.
void Round::end_by_force() {
  CHECK_EQ(dmu_wipe(target_->name().c_str(), DMU_NO_UDEV_SCAN, nullptr), 0);
  join_guests();
  dmu_msg in;
  auto ended = [&] {
    ssize_t n = read(slot_, &in, sizeof in);
    return n < 0 && (errno == ENODEV || errno == ENOTCONN);
  };
  EVENTUALLY(ended());
  file_.reset();
  EVENTUALLY(target_->remove() == 0);
}

void Round::end_at_last_close() {
  target_->remove(DMU_DEFERRED);
  begin_mercy();
  join_guests();
  file_.reset();
  dmu_info info{};
  info.size = sizeof info;
  EVENTUALLY(dmu_get_info(target_->name().c_str(), &info, nullptr) == -ENXIO);
  end_mercy();
}

void Round::end_by_mercy() {
  begin_mercy();
  join_guests();
  end_mercy();
  check();
  file_.reset();
  EVENTUALLY(target_->remove() == 0);
}

// A right daemon, and a device that is as right as it.
void Round::check() {
  ground_.make_room();
  CHECK_EQ(target_->reload(sectors_, dests(), DMU_NOFLUSH), 0);
  EVENTUALLY(Path(target_->path()).stat(kStatInFlight) == 0);
  {
    Channel channel(*target_);
    channel.invalidate(0, sectors_);
    channel.send(dmu_msg_committed(channel.seq));
    dmu_status status = target_->status();
    CHECK_EQ(status.extents + status.leaves, 0U);
    CHECK_EQ(status.faults_outstanding + status.bios_parked, 0U);
    CHECK_EQ(status.uncommitted, 0U);
  }
  CowStore store;
  std::vector<Seed> model(sectors_, kBase);
  auto same = [&](uint64_t sector, uint64_t len) {
    auto buffer = std::make_shared<Buffer>(len);
    CHECK_EQ(Io([=, this] { return file_->read_now(sector, *buffer); }).result(kEnd), static_cast<long>(len * 512));
    for (uint64_t i = 0; i < len; i++) {
      auto found = static_cast<int32_t>(buffer->seed_of(i, sector));
      if (!std::cmp_equal(found, model[sector + i]))
        FAIL("sector " + std::to_string(sector + i) + " reads as seed " + std::to_string(found) + ", not " + std::to_string(model[sector + i]));
    }
  };
  for (int life = 0; life < 2; life++) {
    Cow cow(*target_, store);
    for (int i = 0; i < 40; i++) {
      uint64_t len = 1 + random_.below(64), sector = random_.below(sectors_ - len);
      if (random_.one_in(2)) {
        Seed seed = static_cast<Seed>(4 + random_.below(1000));
        CHECK_EQ(file_->write(sector, len, seed).result(kEnd), static_cast<long>(len * 512));
        std::fill_n(model.begin() + static_cast<long>(sector), len, seed);
      } else {
        same(sector, len);
      }
    }
    CHECK_EQ(file_->sync().result(kEnd), 0);
    cow.kill();
    cow.check();
  }
  Cow cow(*target_, store);
  for (uint64_t at = 0; at < sectors_; at += 1024) same(at, std::min<uint64_t>(1024, sectors_ - at));
  cow.kill();
  cow.check();
  counts().checks++;
}

void Round::run() {
  std::unique_ptr<Faults> faults;
  if (Faults::possible() && random_.one_in(2)) faults = std::make_unique<Faults>(std::vector<const Disk*>{ground_.base, ground_.cow});
  for (uint64_t i = 0; i < kDaemons; i++)
    start(daemons_, [this, i] {
      daemon(seed_ * 1000 + i);
      daemons_running_--;
    });
  for (uint64_t i = 0; i < kGuests; i++)
    start(guests_, [this, i] {
      guest(seed_ * 1000 + 100 + i);
      guests_running_--;
    });
  start(others_, [this] { operate(); });
  start(others_, [this] { tick(); });
  eventually(__FILE__, __LINE__, "the messages of a round have been said", [this] { return counts().messages >= until_; }, kEnd);
  eventually(__FILE__, __LINE__, "what the admin does ends", [this] { return !operating_; }, kEnd);
  bool force = random_.one_in(3);
  // By force: while garbage is still said.
  if (force) end_by_force();
  garbage_over_ = true;
  eventually(__FILE__, __LINE__, "the daemons have ended", [this] { return daemons_running_ == 0; }, kEnd);
  ticking_ = false;
  for (std::thread& thread : others_) thread.join();
  for (std::thread& thread : daemons_) thread.join();
  close(slot_);
  faults.reset();
  if (force) return;
  if (random_.one_in(3))
    end_at_last_close();
  else
    end_by_mercy();
}

// ----------------------------------------------------------------- cases ---

template <typename Kind>
void fuzz(uint64_t first) {
  signal(SIGPIPE, SIG_IGN);
  signal(SIGIO, SIG_IGN);
  struct sigaction interrupt {};
  interrupt.sa_handler = [](int) {};
  sigaction(SIGUSR1, &interrupt, nullptr);

  // Neither this nor a round is deleted when something fails: threads may use it for ever.
  Kind& ground = *new Kind;
  fill_disk(ground.base->path(), 0, kMost, kBase);
  uint64_t budget = setting("FUZZ_MESSAGES", 120'000) / kCases, rounds = setting("FUZZ_ROUNDS", ~0ULL), n = 0;
  uint64_t seed = setting("FUZZ_SEED", 1) * 1'000'000 + first;
  for (; n < rounds && counts().messages < budget; n++) {
    auto* round = new Round(ground, seed + n);
    try {
      round->run();
    } catch (const std::exception& e) {
      throw Failure("round of seed " + std::to_string(seed + n) + ": " + e.what());
    }
    delete round;
  }
  // Nothing that is only read was written to.
  CHECK_READS(File(ground.base->path()), 0, kMost, kBase);
  delete &ground;
  Counts& c = counts();
  printf("# figure: seeds %llu to %llu: %llu rounds, %llu messages, %llu of them taken, %llu reads; %llu of I/O, %llu failed; "
         "%llu operations on devices, %llu daemons, %llu killed; %llu checks; %llu faults injected\n",
         (unsigned long long)seed, (unsigned long long)(seed + n - 1), (unsigned long long)n, (unsigned long long)c.messages,
         (unsigned long long)c.taken, (unsigned long long)c.reads, (unsigned long long)c.io, (unsigned long long)c.io_failed,
         (unsigned long long)c.devices, (unsigned long long)c.daemons, (unsigned long long)c.killed, (unsigned long long)c.checks,
         (unsigned long long)Faults::injected);
}

}  // namespace

CASE_WITHIN(fuzz_ram_disks, deadline()) { fuzz<Two<Ram>>(0); }
CASE_WITHIN(fuzz_disks_with_a_cache, deadline()) { fuzz<Two<Null>>(100'000); }
CASE_WITHIN(fuzz_loop_devices, deadline()) { fuzz<Two<Loop>>(200'000); }
CASE_WITHIN(fuzz_volumes, deadline()) { fuzz<Volumes>(300'000); }
CASE_WITHIN(fuzz_full_thin_disk, deadline()) { fuzz<NoSpace>(400'000); }

// What all of them left: nothing.
CASE(fuzz_leaves_nothing) {
  const std::string kmemleak = std::string(kDebug) + "kmemleak";
  if (access(kmemleak.c_str(), F_OK) == 0) {
    // What is younger than five seconds is not told.
    for (int i = 0; i < 2; i++) {
      write_file(kmemleak, "scan");
      poll(nullptr, 0, 6'000);
    }
    std::string leaks = read_file(kmemleak);
    if (leaks.find("dmu_") != std::string::npos) FAIL(leaks.substr(0, 2000));
  }
  int status = 0;
  EVENTUALLY((run({"rmmod", "dm-userspace"}, &status), status == 0));
}
