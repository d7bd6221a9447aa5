// SPDX-License-Identifier: GPL-2.0-or-later
// An image that anybody may have made, through all that a plugin offers. One program a format:
// fuzzed_format is that of its plugin (module.mk).
//
//   - nothing but cowd::Error is thrown, nothing is answered that the kernel would refuse;
//   - if check finds no error and the image opens for writing, then after any operations check
//     finds none either, and what the guest has written is what it reads;
//   - what repair leaves without errors is without errors.
//
// Memory and time are libFuzzer's to bound (tests/fuzz/run).
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <utility>

#include "formats/common/bytes.hh"
#include "tests/fuzz/checksums.hh"
#include "tests/fuzz/fail.hh"
#include "tests/fuzz/formats.hh"
#include "tests/fuzz/guest.hh"
#include "tests/fuzz/memory_disk.hh"
#include "tests/fuzz/neighbours.hh"
#include "tests/sim/run.hh"

extern "C" {
extern const cowd::FormatDescriptor fuzzed_format;
int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
}

namespace cowd::fuzz {
namespace {

constexpr uint64_t kHead = 64 << 10;
constexpr uint64_t kMapped = 1 << 16;  // sectors, at each end of the disk

// The model of the kernel does not know transient disks, whose promotions are told again.
Input without_restarts(Input input) {
  if (input.flags & kTransient) std::erase_if(input.operations, Guest::is_restart);
  return input;
}

// One image, and what is beside it.
class World {
 public:
  explicit World(const Input& input)
      : input_(without_restarts(input)),
        top_(std::make_shared<MemoryDisk>("image", input)),
        unit_(top_->block_size() / 512) {
    if (input.flags & kPutRight) put_checksums_right(fuzzed_format.name, *top_);
    neighbours_ = std::make_shared<Neighbours>(top_->copy("self"));
    if (fuzzed_format.wants_base && input.flags & kWithBase) {
      base_ = std::make_shared<MemoryDisk>("base", kNeighbourBytes, 512);
      fill(*base_);
      base_->set_read_only(true);
    }
  }

  void play() {
    look_at_it();
    const std::shared_ptr<MemoryDisk> original = top_->copy("image");
    const bool clean = errors() == std::optional<uint64_t>(0);
    read();
    write(clean);
    top_ = original;
    repair();
  }

 private:
  void look_at_it() const {
    std::vector<std::byte> head(std::min(kHead, top_->size()));
    top_->peek(0, head);
    fuzzed_format.probe(head);
    try {
      const nlohmann::json said = sim::run(fuzzed_format.info(top_));
      said.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    } catch (const Error&) {
    }
  }

  // Nothing where it cannot be said.
  std::optional<uint64_t> errors(bool repair = false) const {
    CheckRequest request;
    request.top = top_;
    request.base = base_;
    request.repair = repair;
    request.references = neighbours_;
    try {
      const CheckResult result = sim::run(fuzzed_format.check(std::move(request)));
      said_ = result.findings.empty() ? "" : result.findings.front();
      return result.errors;
    } catch (const Error& error) {
      said_ = error.what();
      return std::nullopt;
    }
  }

  // `boot`: a host that was killed is another one, as far as ownership goes.
  sim::KernelModel::Open opener(bool read_only, const std::string& boot = "here",
                                std::shared_ptr<Image*> opened = nullptr) const {
    return [=, this](bool reattach,
                     sim::KernelModel::Invalidate invalidate) -> Task<std::unique_ptr<Image>> {
      OpenRequest request;
      request.top = top_;
      request.base = base_;
      request.read_only = read_only;
      request.reattach = reattach;
      request.durability = durability();
      request.references = neighbours_;
      request.invalidate = std::move(invalidate);
      request.host_id = "here";
      request.boot_id = boot;
      std::unique_ptr<Image> image = co_await fuzzed_format.open(std::move(request));
      if (opened) *opened = image.get();
      co_return image;
    };
  }

  Durability durability() const {
    if (input_.flags & kTransient) return Durability::transient;
    return input_.flags & kAlways ? Durability::always : Durability::flush;
  }

  void read() {
    sim::KernelModel kernel(opener(true));
    try {
      sim::run(kernel.attach());
      map(kernel.image());
      guest_.emplace(kernel.image().sectors(), unit_);
      sim::run(guest_->look(kernel, input_.operations));
      kernel.image().stats().dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
      sim::run(kernel.detach());
    } catch (const Error&) {
    }
  }

  void map(Image& image) const {
    const uint64_t sectors = image.sectors();
    const uint64_t last = sectors - std::min(sectors, kMapped);
    map_part(image, {0, std::min(sectors, kMapped)});
    map_part(image, {last, sectors - last});
  }

  static void map_part(Image& image, Range range) {
    uint64_t at = range.sector;
    try {
      for (const MapEntry& entry : sim::run(image.map(range))) {
        require(entry.range.sector == at && entry.range.len != 0, "a map with a gap");
        at = entry.range.end();
      }
    } catch (const Error&) {
      return;
    }
    require(at == range.end(), "a map that ends elsewhere");
  }

  // A session and what it leaves.
  void write(bool clean) {
    const uint64_t size = top_->size();
    if (!make_room()) return;
    const auto image = std::make_shared<Image*>(nullptr);
    sim::KernelModel kernel(opener(false, "here", image));
    try {
      sim::run(kernel.attach());
    } catch (const Error&) {
      sim::run(top_->resize(size));  // as cowd does
      require(!clean || errors() == std::optional<uint64_t>(0),
              "an image that would not open for writing has errors since: " + said_);
      return;
    }
    Guest guest = guest_.value_or(Guest(kernel.image().sectors(), unit_));
    if (!clean) guest.expect_nothing();
    const bool alive = sim::run(guest.play(kernel, input_.operations));
    const bool whole = alive && end(kernel, *image);
    if (!clean) return;
    // What was not closed may say of itself that its refcounts must be set right first.
    if (!whole && errors() != std::optional<uint64_t>(0) && said_.find("dirty bit") != said_.npos)
      errors(true);
    require(errors() == std::optional<uint64_t>(0),
            "an image without errors was written to, and has some: " + said_);
    if (!whole || durability() == Durability::transient) guest.forget_unflushed();
    if (durability() == Durability::transient) return;
    sim::KernelModel after(opener(true, "later"));
    sim::run(after.attach());
    sim::run(guest.verify(after));
  }

  // Whether all that was written is durable.
  bool end(sim::KernelModel& kernel, Image* image) {
    if (input_.flags & kLeaveRunning) {
      kernel.die();
      return false;
    }
    try {
      sim::run(kernel.flush());
      sim::run(image->close());
      const uint64_t used = image->used_bytes();
      kernel.die();
      if (used != 0 && used < top_->size())
        sim::run(top_->resize(round_up(used, top_->block_size())));
    } catch (const Error&) {
      kernel.die();
      return false;
    }
    return true;
  }

  bool make_room() {
    if (!fuzzed_format.room) return true;
    try {
      const uint64_t room = sim::run(fuzzed_format.room(top_));
      require(room >= top_->size() || room == 0, "less room is asked for than there is");
      if (room > top_->size()) sim::run(top_->resize(round_up(room, top_->block_size())));
      return true;
    } catch (const Error&) {
      return false;
    }
  }

  void repair() {
    if (errors(true) != std::optional<uint64_t>(0)) return;
    require(errors() == std::optional<uint64_t>(0), "what was repaired has errors: " + said_);
    try {
      sim::KernelModel kernel(opener(true));
      sim::run(kernel.attach());
      Guest guest(kernel.image().sectors(), unit_);
      sim::run(guest.look(kernel, input_.operations));
    } catch (const Error&) {
    }
  }

  const Input input_;
  mutable std::string said_;  // by check, last
  std::shared_ptr<MemoryDisk> top_;
  std::shared_ptr<MemoryDisk> base_;
  std::shared_ptr<Neighbours> neighbours_;
  const uint64_t unit_;
  std::optional<Guest> guest_;  // knows what was there before anything was written
};

}  // namespace
}  // namespace cowd::fuzz

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  cowd::fuzz::World(cowd::fuzz::decode({data, size})).play();
  return 0;
}
