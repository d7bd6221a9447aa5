// SPDX-License-Identifier: GPL-2.0-or-later
// cowctl commit SPEC [--keep]
//
// Everything that can be refused is refused before anything is changed.
#include <iostream>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/image_commit.hh"
#include "cowd/core/references.hh"
#include "cowd/core/run.hh"
#include "cowd/core/units.hh"
#include "cowd/cowctl/commands.hh"
#include "cowd/cowctl/offline_image.hh"
#include "cowd/cowctl/output.hh"
#include "cowd/cowctl/progress.hh"
#include "formats/common/bytes.hh"

namespace cowctl {

namespace {

constexpr uint64_t kSector = 512;

// Opens what the top names as ever, remembers it, and gives a stand-in for it.
class NotedReferences : public cowd::References {
 public:
  NotedReferences(std::shared_ptr<cowd::References> real, const cowd::Disk* top)
      : real_(std::move(real)), top_(top) {}

  Task<std::shared_ptr<cowd::Disk>> disk(const cowd::Disk& from, std::string name,
                                         bool writable) override {
    co_return co_await real_->disk(from, std::move(name), writable);
  }
  Task<std::unique_ptr<cowd::Image>> image(const cowd::Disk& from, std::string name,
                                           std::string its_format) override {
    std::unique_ptr<cowd::Image> opened = co_await real_->image(from, name, its_format);
    if (&from != top_) co_return opened;
    path = name;
    format = its_format;
    bytes = opened->sectors() * kSector;
    std::unique_ptr<cowd::Image> stand_in = cowd::stand_in_for(*opened);
    co_await opened->close();
    co_return stand_in;
  }

  // Of what the top names; empty if it has not been asked for.
  std::string path;
  std::string format;
  uint64_t bytes = 0;

 private:
  const std::shared_ptr<cowd::References> real_;
  const cowd::Disk* const top_;
};

// What is written to.
struct Base {
  const cowd::FormatDescriptor* format = nullptr;
  std::shared_ptr<cowd::Disk> disk;
  std::shared_ptr<cowd::References> references;
  uint64_t bytes = 0;  // of the disk in it
};

Base find_base(Context& context, const OfflineDisk& disk, const NotedReferences& noted) {
  Base base;
  if (disk.spec.base) {
    base.format = &context.plugins.load("raw");
    base.disk = disk.base.disk;
    base.bytes = base.disk->size();
    return base;
  }
  if (noted.path.empty())
    throw Error(EINVAL, disk.spec.top.text() +
                            " names nothing that it lies on, so there is nothing to commit it to.");
  base.format = &context.plugins.load(noted.format);
  base.references = references_for(context, disk);
  base.disk = cowd::run_to_end(context.io, base.references->disk(*disk.top.disk, noted.path, true));
  base.bytes = noted.bytes;
  return base;
}

void require_length(const Base& base, uint64_t wanted) {
  if (base.bytes >= wanted) return;
  const std::string what = base.disk->name() + " holds a disk of " + std::to_string(base.bytes) +
                           " bytes, and one of " + std::to_string(wanted) +
                           " is to be committed to it: ";
  if (!base.format->resize)
    throw Error(EOPNOTSUPP, what + "the format " + base.format->name +
                                " cannot make it larger here. Do that first ('qemu-img resize').");
  if (!is_file(*base.disk)) throw Error(ENOSPC, what + "make the device larger.");
}

Task<std::unique_ptr<cowd::Image>> open_base(Base base, uint64_t wanted) {
  if (base.bytes < wanted) {
    cowd::ResizeRequest request;
    request.top = base.disk;
    // A raw one is made of whole blocks.
    request.size = cowd::round_up(wanted, base.disk->block_size());
    request.references = base.references;
    co_await base.format->resize(std::move(request));
  }
  WritableImage image(*base.format, base.disk, base.references);
  co_return co_await image.open();
}

json to_json(const OfflineDisk& disk, const Base& base, const cowd::CommitCounts& counts,
             bool emptied) {
  return {{"filename", disk.spec.top.text()}, {"format", disk.spec.format},
          {"base", base.disk->name()},        {"copied", counts.copied},
          {"zeroed", counts.zeroed},          {"emptied", emptied}};
}

// The top for writing, though its image is only read: nobody else may have it.
void open_both(Context& context, OfflineDisk* disk) {
  refuse_in_use(*disk, "committed");
  open_disk(context, disk, cowd::BackingUse::change);
  if (!disk->spec.base) return;
  disk->base = cowd::open_backing(context.async_io(), *disk->spec.base, cowd::BackingUse::change);
}

}  // namespace

int run_commit(Context& context) {
  OfflineDisk disk = find_disk(context);
  if (!disk.format->begin_commit)
    throw Error(EOPNOTSUPP, "Images of the format " + disk.spec.format +
                                " are not committed by cowctl; nothing was changed.");
  open_both(context, &disk);
  const auto noted =
      std::make_shared<NotedReferences>(references_for(context, disk), disk.top.disk.get());
  std::unique_ptr<cowd::Image> top = open_read_only(context, disk, noted);
  const uint64_t wanted = top->sectors() * kSector;
  const Base base = find_base(context, disk, *noted);
  require_length(base, wanted);

  cowd::CommitPlan plan;
  plan.format = disk.format;
  plan.request.top = disk.top.disk;
  plan.request.base = disk.base.disk;
  plan.request.empty = !context.options.keep;
  plan.top = std::move(top);
  plan.base_disk = base.disk;
  plan.open_base = [base, wanted] { return open_base(base, wanted); };
  cowd::CommitCounts counts;
  {
    ProgressLine line(context, "committing " + disk.spec.top.text());
    plan.request.progress = [&](uint64_t done, uint64_t total) { line.update(done, total); };
    counts = cowd::run_to_end(context.io, cowd::commit_image(std::move(plan)));
  }
  const bool emptied = !context.options.keep && disk.format->end_commit;
  if (!context.options.keep && !emptied)
    context.warn("Images of the format " + disk.spec.format +
                 " cannot be emptied: " + disk.spec.top.text() + " still has what was committed.");
  if (context.options.json)
    print_json(std::cout, to_json(disk, base, counts, emptied));
  else
    context.say("Committed " + disk.spec.top.text() + " to " + base.disk->name() + ": " +
                cowd::format_size(counts.copied) + " of data.");
  return 0;
}

}  // namespace cowctl
