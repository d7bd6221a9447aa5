// SPDX-License-Identifier: GPL-2.0-or-later
// dm-userspace and its guest over simulated disks: what an image's answers are worth is
// what is read back through them. It follows the uAPI document (dm-userspace.h) and
// throws std::logic_error where the kernel would refuse an answer:
//
//   - extents and overlays are kept as the kernel keeps them: an answer cuts what has no write
//     side and fills holes, an overlay must be in a hole or be there already;
//   - a first write under an overlay copies what it does not cover, then promotes;
//     PROMOTED is told late and merged, at the latest before the next question, a commit or the
//     end of an invalidation;
//   - FLUSH flushes the destinations, then commits if there is anything uncommitted;
//   - forget() drops extents, as a full cache does; reattach() is a daemon killed and begun again.
//
// Several operations may run at once on one event loop, on sectors that they do not share.
// Between operations the image may be destroyed; what was promoted is told to the next.
//
// Here the image is asked directly. What stands between it and the kernel in cowd, messages and a
// session, is in session_kernel.hh, which puts its own in the place of what is virtual below.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "formats/plugin.hh"
#include "tests/sim/sim_disk.hh"

namespace cowd::sim {

class KernelModel {
 public:
  // How the daemon opens the image. It must hand on `invalidate`.
  using Invalidate = std::function<Task<>(Range)>;
  using Open = std::function<Task<std::unique_ptr<Image>>(bool reattach, Invalidate invalidate)>;

  explicit KernelModel(Open open, uint64_t seed = 1) : open_(std::move(open)), random_(seed) {}
  virtual ~KernelModel() = default;

  Task<> attach();
  // The daemon died between two operations and is there again.
  Task<> reattach();
  // The clean end: what is uncommitted is committed, the image closed and destroyed.
  Task<> detach();
  // The machine dies: image and kernel are gone.
  void die();

  // Errors of the image are thrown as they are: the bio failed with them.
  Task<Bytes> read(uint64_t sector, uint64_t count);
  Task<> write(uint64_t sector, std::span<const std::byte> data);
  Task<> flush();
  Task<> timer();  // the daemon's commit on its own
  Task<> discard(Range range);
  // WRITE_ZEROES.
  Task<> zero(Range range);
  // Drops extents that need not be kept; overlays lose their bits only.
  void forget();

  Image& image() { return *image_; }
  bool attached() const { return image_ != nullptr; }
  uint64_t uncommitted() const { return uncommitted_.size(); }
  size_t overlays() const;
  size_t extents() const { return extents_.size(); }
  // Copies made for first writes, in sectors.
  uint64_t copied() const { return copied_; }
  uint64_t faults() const { return faults_; }
  // Whether Data must come in for reads; tests that must not inflate look at it.
  uint64_t data_answers() const { return data_answers_; }

 protected:
  struct Kept {
    Extent map;
    std::vector<bool> known;  // of an overlay, by leaf: whether its bits are
    std::vector<bool> bits;  // of an overlay's granules
  };
  using KeptPtr = std::shared_ptr<Kept>;
  // I/O under way through an extent, or a first write.
  struct Use {
    Range range;
    KeptPtr promotes = nullptr;  // the overlay, of a first write
    bool parked = false;         // it waits for the daemon, so nothing waits for it
  };
  struct Uncommitted {
    Promotion told;
    uint32_t flags = 0;
    bool unread = true;
    bool closed = false;
  };

  // The extents of the answers are there when these return, or the fault is to come again.
  virtual Task<> ask(Range range, Access access);
  virtual Task<> ask_leaf(KeptPtr overlay, uint64_t sector);
  virtual Task<> ask_discard(Range range);
  // Whether the zeroes are there; if not, it is to be looked at again.
  virtual Task<bool> ask_zero(Range range);
  virtual void tell();
  virtual Task<> commit(uint64_t seq, bool data_flushed);
  // A write under a SYNC extent has ended; seq of its promotion, 0 if nothing was promoted.
  virtual Task<> done(const Extent& map, Range range, uint64_t seq);
  // Writes to a destination. False: the write has to look up its extents again.
  virtual Task<bool> put(Use& use, uint32_t dest, uint64_t sector, std::span<const std::byte> data);
  // Lets others go on.
  virtual Task<> turn();

  static constexpr int kForever = 200000;  // turns that nothing may wait for
  template <typename Done>
  Task<> until(Done is_done, const char* what) {
    for (int turns = 0; !is_done(); turns++) {
      if (turns > kForever) throw std::logic_error(std::string("waits for ever for ") + what);
      co_await turn();
    }
  }
  KeptPtr find(uint64_t sector, uint64_t* next);
  static Range leaf_of(const KeptPtr& overlay, uint64_t sector);
  static uint64_t end_of_leaf(const Kept& kept, uint64_t granule);
  void take(std::vector<Answer> answers, Range asked, Access access, uint64_t gen);
  void install(Extent extent, bool answer, Range asked, bool stale);
  void fill(const Extent& extent);
  void cut(Range range);
  bool has_orphan(Range range) const;
  bool clip_to_hole(Extent& extent, uint64_t at);
  void load_bits(const Bitmap& bitmap);
  void check(const Extent& extent) const;
  uint64_t remember(const Extent& extent, Range range);
  virtual void remembered() {}
  bool has_untold() const;
  uint64_t last_seq() const;  // of what is to be committed; 0: nothing is
  void committed(uint64_t seq);
  Task<uint64_t> write_some(uint64_t sector, std::span<const std::byte> data);
  Task<uint64_t> promote(const KeptPtr& kept, uint64_t sector, std::span<const std::byte> data);
  Task<bool> copy(Use& use, const Extent& map, Range range);
  Task<> invalidate(Range range);
  // Nothing uses what was dropped any more, and what that promoted is told.
  Task<> drained(Range range);
  void drop(Range range);
  void open_done();
  Disk& disk(uint32_t dest) const { return *destinations_.at(dest).disk; }

  Open open_;
  Random random_;
  std::unique_ptr<Image> image_;
  uint64_t sectors_ = 0;
  std::vector<Destination> destinations_;
  std::map<uint64_t, KeptPtr> extents_;  // by first sector
  std::list<Use> uses_;
  std::list<Uncommitted> uncommitted_;
  std::map<uint64_t, Range> dropped_;  // gen to what was dropped then
  uint64_t seq_ = 0;
  uint64_t gen_ = 1;
  int invalidating_ = 0;
  bool committing_ = false;
  uint64_t copied_ = 0, faults_ = 0, data_answers_ = 0;
  std::optional<Data> data_;  // the last answer, if it was one
};

// A guest whose every sector says which write it is of, so that what a crash left can be
// judged: not older than the last flush, not newer than the last write.
class Guest {
 public:
  // `beneath`: what the disk holds before the first write; empty beyond its end: zeroes.
  Guest(KernelModel& kernel, uint64_t sectors, std::vector<std::byte> beneath = {});

  Task<> write(Range range);
  Task<> zero(Range range);
  Task<> discard(Range range);  // afterwards: what was there, or zeroes
  Task<> flush();
  // Throws std::logic_error where the disk has not what it must have.
  Task<> verify(Range range);
  Task<> verify() { return verify({0, sectors_}); }
  // The whole disk, as `found` (an image after a crash at mark `mark`) has it: read through
  // another kernel. Sectors may be of any write from the flush before the mark on.
  Task<> verify_crash(KernelModel& found, uint64_t mark) const;

  // Marks are made in `log` when a flush is done; their values count from 1.
  void mark_in(SimDisk& log) { log_ = &log; }
  uint64_t sectors() const { return sectors_; }
  // What the guest should read; discarded sectors as zeroes.
  Bytes expected() const;
  uint64_t marks() const { return marks_.size() - 1; }
  void use(KernelModel& kernel) { kernel_ = &kernel; }

 private:
  enum class What { data, zero, discard };
  struct Version {
    uint64_t number = 0;  // 0: what was beneath
    What what = What::data;
  };
  Bytes content(uint64_t sector, const Version& version) const;
  // Whether the bytes may be what versions[at] left.
  bool fits(uint64_t sector, const std::vector<Version>& versions, size_t at,
            std::span<const std::byte> bytes) const;
  void set(Range range, What what);
  std::string described(uint64_t sector, std::span<const std::byte> bytes) const;
  const std::vector<Version>& versions(uint64_t sector) const;

  KernelModel* kernel_;
  uint64_t sectors_;
  std::vector<std::byte> beneath_;
  std::map<uint64_t, std::vector<Version>> history_;  // by sector, oldest first
  uint64_t next_ = 1;
  // Writes below this number were flushed then, save those that had not ended.
  struct Mark {
    uint64_t below = 0;
    std::set<uint64_t> open;
  };
  std::vector<Mark> marks_{Mark()};
  std::set<uint64_t> open_;  // under way, or failed
  SimDisk* log_ = nullptr;
};

}  // namespace cowd::sim
