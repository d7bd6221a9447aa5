// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/sim/image_world.hh"

#include <stdexcept>
#include <utility>

#include "cowd/core/image_io.hh"
#include "formats/common/bytes.hh"

namespace cowd::sim {
namespace {

constexpr uint64_t kSectorBytes = 512;

OpenRequest request_for(const Parts& parts, bool to_write) {
  OpenRequest request;
  request.top = parts.top;
  request.base = parts.base;
  request.read_only = !to_write;
  request.references = parts.chain;
  request.host_id = "host-a";
  request.boot_id = "boot-1";
  request.invalidate = ImageIo::invalidate;
  return request;
}

}  // namespace

const FormatDescriptor& plugin(const std::string& name) {
  static PluginLoader loader({"build/plugins"});
  return loader.load(name);
}

std::string qemu_name(const std::string& format) { return format == "vhd" ? "vpc" : format; }

// --- power ------------------------------------------------------------------------------

void PoweredDisk::spend() {
  power_.used++;
  if (power_.left == 0) throw Error(EIO, "The power is gone.");
  power_.left--;
}

Task<> PoweredDisk::read_at(uint64_t offset, std::span<std::byte> out) {
  if (power_.left == 0) throw Error(EIO, "The power is gone.");
  co_await disk_->read_at(offset, out);
}

Task<> PoweredDisk::write_at(uint64_t offset, std::span<const std::byte> in) {
  spend();
  co_await disk_->write_at(offset, in);
}

Task<> PoweredDisk::flush() {
  spend();
  co_await disk_->flush();
}

Task<> PoweredDisk::resize(uint64_t bytes) {
  spend();
  co_await disk_->resize(bytes);
}

// --- chains -----------------------------------------------------------------------------

Task<std::shared_ptr<Disk>> Chain::disk(const Disk&, std::string name, bool) {
  const auto found = disks.find(name);
  if (found == disks.end()) throw Error(ENOENT, name + " is not there.");
  co_return found->second;
}

Task<std::unique_ptr<Image>> Chain::image(const Disk& from, std::string name,
                                          std::string its_format) {
  Parts parts;
  parts.format = its_format;
  parts.top = co_await disk(from, name, false);
  parts.chain = std::shared_ptr<References>(std::shared_ptr<void>(), this);
  std::unique_ptr<Image> opened = co_await open(parts, false);
  if (&from != committed) co_return opened;
  path = name;
  format = its_format;
  std::unique_ptr<Image> stand_in = stand_in_for(*opened);
  co_return stand_in;
}

// --- images -----------------------------------------------------------------------------

std::shared_ptr<SimDisk> make(const std::string& name, const std::string& format, uint64_t bytes,
                              const Options& options, Parts beneath, uint32_t block_size) {
  const bool fixed = format == "raw";
  uint64_t length = fixed ? bytes : 0;
  if (format == "dscow") length = plugin(format).store_size(bytes, options);
  auto disk = std::make_shared<SimDisk>(name, length, block_size, false);
  CreateRequest request;
  request.top = disk;
  request.base = beneath.base;
  request.size = bytes;
  request.options = options;
  request.references = beneath.chain;
  run(plugin(format).create(request));
  return disk;
}

Task<std::unique_ptr<Image>> open(Parts parts, bool to_write) {
  const FormatDescriptor& format = plugin(parts.format);
  if (to_write && format.room) {
    const uint64_t room = co_await format.room(parts.top);
    if (room > parts.top->size())
      co_await parts.top->resize(round_up(room, parts.top->block_size()));
  }
  OpenRequest request = request_for(parts, to_write);
  co_return co_await format.open(std::move(request));
}

Task<> close(std::unique_ptr<Image> image, std::shared_ptr<Disk> disk) {
  co_await image->close();
  const uint64_t used = image->used_bytes();
  if (used && used < disk->size()) co_await disk->resize(round_up(used, disk->block_size()));
}

Bytes bytes_of(Parts parts) {
  const std::unique_ptr<Image> image = run(open(parts, false));
  ImageIo io(*image);
  Bytes bytes(io.sectors() * kSectorBytes);
  run(io.read({0, io.sectors()}, bytes));
  run(image->close());
  return bytes;
}

Task<> scribble(Image& image, Random& random, int writes, Bytes& model, uint64_t unit) {
  ImageIo io(image);
  const uint64_t units = model.size() / unit;
  for (int i = 0; i < writes; i++) {
    const uint64_t first = random() % units;
    const uint64_t count = std::min(1 + random() % (random() % 4 ? 20 : 200), units - first);
    const auto part = std::span<std::byte>(model).subspan(first * unit, count * unit);
    const Range range{first * unit / kSectorBytes, part.size() / kSectorBytes};
    if (random() % 5 == 0) {
      std::ranges::fill(part, std::byte{0});
      co_await io.zero(range);
    } else {
      for (std::byte& each : part) each = std::byte(random());
      co_await io.write(range, part);
    }
    if (random() % 8 == 0) co_await io.commit();
    if (random() % 4) continue;
    Bytes found(part.size());
    co_await io.read(range, found);
    if (!std::ranges::equal(found, part)) throw std::logic_error("what was written is not there");
  }
  co_await io.commit();
}

CheckResult check(Parts parts) {
  CheckRequest request;
  request.top = parts.top;
  request.base = parts.base;
  request.references = parts.chain;
  return run(plugin(parts.format).check(request));
}

Task<CommitCounts> commit(Parts parts, std::shared_ptr<Chain> chain, bool empty) {
  CommitPlan plan;
  plan.format = &plugin(parts.format);
  plan.request.top = parts.top;
  plan.request.base = parts.base;
  plan.request.empty = empty;
  if (chain) chain->committed = parts.top.get();
  parts.chain = chain;
  plan.top = co_await open(parts, false);
  Parts base;
  base.format = parts.base ? "raw" : chain->format;
  base.top = parts.base ? parts.base : chain->disks.at(chain->path);
  base.chain = chain;
  plan.base_disk = base.top;
  const uint64_t wanted = plan.top->sectors() * kSectorBytes;
  const auto open_base = [base, wanted]() -> Task<std::unique_ptr<Image>> {
    std::unique_ptr<Image> image = co_await open(base, false);
    const uint64_t bytes = image->sectors() * kSectorBytes;
    image.reset();
    ResizeRequest request;
    request.top = base.top;
    request.size = wanted;
    request.references = base.chain;
    if (bytes < wanted) co_await plugin(base.format).resize(request);
    image = co_await open(base, true);
    co_return image;
  };
  plan.open_base = open_base;
  co_return co_await commit_image(std::move(plan));
}

Bytes by_qemu(const std::vector<std::shared_ptr<SimDisk>>& images, const std::string& format) {
  const Folder folder;
  for (const auto& each : images) save(*each, folder / each->name());
  const std::string said = shell("qemu-img convert -f " + qemu_name(format) + " -O raw " +
                                 (folder / images[0]->name()) + " " + (folder / "out"));
  if (!said.empty()) throw std::runtime_error(said);
  return read_file(folder / "out");
}

}  // namespace cowd::sim
