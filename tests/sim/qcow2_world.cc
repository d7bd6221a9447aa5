// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/sim/qcow2_world.hh"

#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/bytes.hh"
#include "formats/raw/raw.hh"

extern char** environ;

namespace cowd::sim {

Task<std::shared_ptr<Disk>> FakeReferences::disk(const Disk& from, std::string path, bool) {
  const auto found = disks_.find(path);
  if (found == disks_.end()) throw Error(ENOENT, from.name() + " names " + path + ": not there.");
  co_return found->second;
}

Task<std::unique_ptr<Image>> FakeReferences::image(const Disk& from, std::string path,
                                                   std::string format) {
  OpenRequest request;
  request.top = co_await disk(from, path, false);
  request.read_only = true;
  request.references = std::make_shared<FakeReferences>(*this);
  if (format == "raw") co_return co_await raw::open(std::move(request));
  if (format != "qcow2") throw Error(EINVAL, "No format " + format + " here.");
  co_return co_await qcow2::open(std::move(request));
}

TempFolder::TempFolder() {
  std::string name = std::filesystem::temp_directory_path() / "qcow2-test-XXXXXX";
  if (!mkdtemp(name.data())) throw std::runtime_error("no temporary folder");
  path_ = name;
}

TempFolder::~TempFolder() { std::filesystem::remove_all(path_); }

int run_program(std::vector<std::string> words, std::string* output) {
  static const TempFolder folder;
  const std::string out = folder.path("output");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_adddup2(&actions, 1, 2);
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  pid_t child = 0;
  const int problem =
      posix_spawnp(&child, words[0].c_str(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (problem) throw std::runtime_error(words[0] + " cannot be run: install qemu-utils");
  int status = 0;
  waitpid(child, &status, 0);
  if (output) {
    const Bytes bytes = read_file(out);
    output->assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  Bytes bytes(std::filesystem::file_size(path));
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  return bytes;
}

void save(const SimDisk& disk, const std::string& path) {
  constexpr uint64_t kPiece = 64 << 10;
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (file < 0 || ftruncate(file, static_cast<off_t>(disk.size())) != 0)
    throw std::runtime_error("cannot write " + path);
  for (uint64_t at = 0; at < disk.size(); at += kPiece) {
    const Bytes bytes = disk.peek(at, std::min(kPiece, disk.size() - at));
    if (std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; })) continue;
    if (pwrite(file, bytes.data(), bytes.size(), static_cast<off_t>(at)) < 0)
      throw std::runtime_error("cannot write " + path);
  }
  ::close(file);
}

std::shared_ptr<SimDisk> load(const std::string& path, bool to_write, uint32_t block_size) {
  Bytes bytes = read_file(path);
  bytes.resize(round_up(bytes.size(), block_size));
  auto disk = std::make_shared<SimDisk>(path, bytes.size(), block_size, false);
  disk->poke(0, bytes);
  if (to_write) make_room(disk);
  return disk;
}

void make_room(const std::shared_ptr<SimDisk>& disk) {
  const uint64_t room = run(qcow2::room(disk));
  if (room > disk->size()) disk->set_size(round_up(room, disk->block_size()));
}

std::shared_ptr<SimDisk> make_qcow2(uint64_t size, const Options& options,
                                    std::shared_ptr<References> references, uint32_t block_size) {
  auto disk = std::make_shared<SimDisk>("disk.qcow2", 0, block_size, false);
  CreateRequest request;
  request.top = disk;
  request.size = size;
  request.options = options;
  request.references = std::move(references);
  run(qcow2::create(request));
  make_room(disk);
  return disk;
}

OpenRequest qcow2_request(std::shared_ptr<Disk> top, std::shared_ptr<References> references) {
  OpenRequest request;
  request.top = std::move(top);
  request.references = std::move(references);
  return request;
}

KernelModel::Open qcow2_opener(std::shared_ptr<Disk> top, std::shared_ptr<References> references,
                               Durability durability) {
  return [=](bool reattach, KernelModel::Invalidate invalidate) -> Task<std::unique_ptr<Image>> {
    OpenRequest request = qcow2_request(top, references);
    request.reattach = reattach;
    request.durability = durability;
    request.read_only = top->read_only();
    request.invalidate = invalidate;
    co_return co_await qcow2::open(std::move(request));
  };
}

CheckResult check_qcow2(std::shared_ptr<Disk> disk, bool repair) {
  CheckRequest request;
  request.top = std::move(disk);
  request.repair = repair;
  return run(qcow2::check(request));
}

int qemu_check(const SimDisk& disk, std::string* output, bool repair) {
  const TempFolder folder;
  const std::string path = folder.path("image.qcow2");
  save(disk, path);
  const std::string data = folder.path("data");
  const auto copy = disk.copy();
  const qcow2::Header header = run(qcow2::read_header(*copy));
  if (header.has_data_file()) save(SimDisk("data", round_up(header.size, 512), 512, false), data);
  const auto file = [](const std::string& name) {
    return R"({"driver":"file","filename":")" + name + "\"}";
  };
  // What it lies on is not there, and has nothing to do with it.
  const std::string image = R"(json:{"driver":"qcow2","backing":null,"file":)" + file(path) +
                            (header.has_data_file() ? R"(,"data-file":)" + file(data) : "") + "}";
  if (repair) return run_program({"qemu-img", "check", "-r", "all", image}, output);
  return run_program({"qemu-img", "check", image}, output);
}

Bytes qemu_bytes(const std::string& path, const std::string& format) {
  const TempFolder folder;
  const std::string raw = folder.path("raw");
  std::string output;
  if (run_program({"qemu-img", "convert", "-f", format, "-O", "raw", path, raw}, &output))
    throw std::runtime_error(output);
  return read_file(raw);
}

Bytes image_bytes(std::shared_ptr<Disk> top, std::shared_ptr<References> references) {
  auto open = [=](bool, KernelModel::Invalidate) -> Task<std::unique_ptr<Image>> {
    OpenRequest request = qcow2_request(top, references);
    request.read_only = true;
    co_return co_await qcow2::open(std::move(request));
  };
  KernelModel kernel(open);
  run(kernel.attach());
  const uint64_t sectors = kernel.image().sectors();
  return run(kernel.read(0, sectors));
}

const std::vector<Shape>& qcow2_shapes() {
  static const std::vector<Shape> all = {
      {2 * kMiB, {{"cluster_size", "4K"}}, 0, 512},
      {kMiB + 1536, {{"cluster_size", "512"}}, 0, 512},
      {3 * kMiB + 512, {{"cluster_size", "4K"}}, kMiB + 512, 512},
      {3 * kMiB, {{"cluster_size", "64K"}}, 5 * kMiB, 4096},
      {2 * kMiB, {{"cluster_size", "4K"}, {"compat", "0.10"}}, kMiB, 512},
      {kMiB, {{"cluster_size", "1K"}, {"refcount_bits", "1"}}, 0, 512},
      {kMiB, {{"cluster_size", "1K"}, {"refcount_bits", "64"}}, 100 * kKiB, 512},
      {4 * kMiB, {{"cluster_size", "512K"}}, kMiB + 1024, 512},
      {2 * kMiB + 1536, {{"cluster_size", "16K"}, {"extended_l2", "on"}}, 0, 512},
      {3 * kMiB + 512, {{"cluster_size", "64K"}, {"extended_l2", "on"}}, kMiB + 1536, 512},
      {4 * kMiB, {{"cluster_size", "128K"}, {"extended_l2", "on"}}, 5 * kMiB, 4096},
      {3 * kMiB, {{"cluster_size", "16K"}}, kMiB + 1536, 4096},
      {2 * kMiB, {{"cluster_size", "64K"}, {"data_file", "data.raw"}}, kMiB + 512, 512},
      {2 * kMiB + 512,
       {{"cluster_size", "4K"}, {"data_file", "data.raw"}, {"data_file_raw", "on"}},
       0,
       512},
      {2 * kMiB,
       {{"cluster_size", "64K"}, {"extended_l2", "on"}, {"data_file", "data.raw"}},
       3 * kMiB,
       512},
  };
  return all;
}

Qcow2World::Qcow2World(const Shape& shape, uint64_t seed, Durability durability,
                       std::shared_ptr<SimDisk> data_file)
    : references(std::make_shared<FakeReferences>()), random(seed), data(std::move(data_file)) {
  Options options = shape.options;
  if (options.count("data_file")) {
    if (!data) data = std::make_shared<SimDisk>("data.raw", 512, 512, false);
    references->add(options.at("data_file"), data);
  }
  Bytes beneath;
  if (shape.base) {
    auto base = std::make_shared<SimDisk>("base.raw", shape.base);
    references->add("base.raw", base);
    beneath = base->peek(0, shape.base);
    options["backing_file"] = "base.raw";
    options["backing_fmt"] = "raw";
  }
  beneath.resize(shape.size);
  top = make_qcow2(shape.size, options, references, shape.block_size);
  kernel = std::make_unique<KernelModel>(qcow2_opener(top, references, durability), seed);
  run(kernel->attach());
  guest = std::make_unique<Guest>(*kernel, shape.size / 512, beneath);
  align = shape.block_size / 512;
}

bool Qcow2World::is_raw() const {
  return run(qcow2::read_header(*top)).autoclear & qcow2::kRawExternal;
}

Range Qcow2World::somewhere(Range part, uint64_t most) {
  const uint64_t sector = part.sector + random() % part.len / align * align;
  const uint64_t len = 1 + random() % std::min(most, part.end() - sector);
  return {sector, std::min((len + align - 1) / align * align, part.end() - sector)};
}

Task<> Qcow2World::step(Range part) {
  switch (random() % 16) {
    case 0: co_await guest->flush(); break;
    case 1: co_await kernel->timer(); break;
    case 2: kernel->forget(); break;
    case 3: co_await guest->zero(somewhere(part, 400)); break;
    case 4: co_await guest->discard(somewhere(part, 600)); break;
    case 5: co_await guest->verify(somewhere(part, 200)); break;
    case 6: {  // a sequential writer
      uint64_t at = somewhere(part, 1).sector;
      for (int i = 0; i < 6 && at + 16 <= part.end(); i++, at += 16) {
        const Range range{at, 16};
        co_await guest->write(range);
      }
      break;
    }
    default: co_await guest->write(somewhere(part, random() % 4 ? 20 : 300));
  }
}

Task<> Qcow2World::play(Range part, int steps) {
  for (int i = 0; i < steps; i++) co_await step(part);
}

}  // namespace cowd::sim
