// SPDX-License-Identifier: GPL-2.0-or-later
// cowctl create SPEC [SIZE] [-o NAME=VALUE,...] [--force]
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/errno_name.hh"
#include "cowd/core/run.hh"
#include "cowd/core/units.hh"
#include "cowd/cowctl/commands.hh"
#include "cowd/cowctl/output.hh"
#include "cowd/cowctl/progress.hh"

namespace cowctl {

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kSmallest = 4096;

// A file made for a new image, which goes again unless the image was finished.
class NewFile {
 public:
  void make(const std::string& path, uint64_t size) {
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) throw cowd::system_error(errno, "Making the file " + path + " failed");
    path_ = path;
    const int error = ftruncate(fd, static_cast<off_t>(size)) < 0 ? errno : 0;
    close(fd);
    if (error)
      throw cowd::system_error(
          error, "Giving the file " + path + " " + std::to_string(size) + " bytes failed");
  }
  void keep() { path_.clear(); }
  ~NewFile() {
    if (!path_.empty()) unlink(path_.c_str());
  }

 private:
  std::string path_;
};

cowd::Options create_options_from(Context& context) {
  cowd::Options options;
  for (const std::string& option : context.options.create_options) {
    const auto at = option.find('=');
    if (at == std::string::npos || at == 0)
      throw Error(EINVAL, "-o is '" + option + "' but must be NAME=VALUE, or help.");
    if (!options.emplace(option.substr(0, at), option.substr(at + 1)).second)
      throw Error(EINVAL, "-o gives '" + option.substr(0, at) + "' twice.");
  }
  return options;
}

int list_options(const cowd::FormatDescriptor& format) {
  const auto options = cowd::create_options(format);
  if (options.empty()) std::cout << "The format " << format.name << " has no options.\n";
  Table table({{"Option"}, {"Meaning"}});
  for (const auto& [name, meaning] : options) table.add({name, meaning});
  if (!options.empty()) table.print(std::cout);
  return 0;
}

// Sparse, and larger than any format here needs on top of the data: what is not
// written takes no space.
uint64_t file_size_for(uint64_t disk_size) {
  const uint64_t with_metadata = disk_size + disk_size / 2048 + 16 * kMiB;
  return (with_metadata + kMiB - 1) / kMiB * kMiB;
}

uint64_t size_of_disk(const Context& context, const OfflineDisk& disk,
                      const cowd::Options& options) {
  if (!context.options.size.empty()) return cowd::parse_size(context.options.size, "SIZE");
  if (const auto at = options.find("size"); at != options.end())
    return cowd::parse_size(at->second, "-o size");
  if (disk.spec.base && disk.spec.base->kind == cowd::Component::Kind::path)
    return cowd::backing_size(disk.spec.base->path);
  return 0;
}

void make_file_if_missing(const OfflineDisk& disk, uint64_t size, NewFile* file) {
  if (disk.spec.top.kind != cowd::Component::Kind::path) return;
  const std::filesystem::path path = disk.spec.top.path;
  std::error_code ignored;
  // Below /dev a missing name is a volume that is not active, never a file to make.
  if (std::filesystem::exists(path, ignored) || path.string().starts_with("/dev/")) return;
  // A format that lets its file grow may learn the size from a file that the options name.
  if (size == 0 && !disk.format->room)
    throw Error(EINVAL, path.string() +
                            " does not exist, and neither SIZE nor BASE says how large a disk to "
                            "make in it; give one.");
  const bool as_it_is = disk.spec.format == "raw";
  // A format that lets its file grow makes it as long as it needs.
  file->make(path, disk.format->room ? kSmallest : as_it_is ? size : file_size_for(size));
}

// A file for the data that options name, beside the image if the name is relative. One that is
// there stays, and the format judges it.
void make_data_file_if_missing(const OfflineDisk& disk, const cowd::Options& options,
                               NewFile* file) {
  const auto named = options.find("data_file");
  if (named == options.end() || named->second.empty() ||
      disk.spec.top.kind != cowd::Component::Kind::path)
    return;
  std::error_code ignored;
  const auto image = std::filesystem::weakly_canonical(disk.spec.top.path, ignored);
  const std::filesystem::path path = image.parent_path() / named->second;
  if (!std::filesystem::exists(std::filesystem::symlink_status(path, ignored)))
    file->make(path, kSmallest);
}

}  // namespace

int run_create(Context& context) {
  OfflineDisk disk = find_disk(context);
  const auto& given = context.options.create_options;
  if (std::find(given.begin(), given.end(), "help") != given.end())
    return list_options(*disk.format);
  if (!disk.format->create)
    throw Error(EOPNOTSUPP,
                "Images of the format " + disk.spec.format + " cannot be made by cowctl.");
  if (disk.format->needs_base && !disk.spec.base)
    throw Error(EINVAL, "The format " + disk.spec.format +
                            " needs a base; give it as the third component, FORMAT:TOP:BASE.");

  cowd::CreateRequest request;
  request.options = create_options_from(context);
  if (!context.options.size.empty()) request.size = cowd::parse_size(context.options.size, "SIZE");
  NewFile file, data_file;
  make_file_if_missing(disk, size_of_disk(context, disk, request.options), &file);
  make_data_file_if_missing(disk, request.options, &data_file);
  open_disk(context, &disk, cowd::BackingUse::change);
  request.top = disk.top.disk;
  request.base = disk.base.disk;
  request.force = context.options.force;
  const auto references = references_for(context, disk);
  request.references = references;

  ProgressLine line(context, "creating " + disk.spec.top.text());
  request.progress = [&](uint64_t done, uint64_t total) { line.update(done, total); };
  // An interrupted one must not leave its file: the work stops, and NewFile removes it.
  boost::asio::signal_set interrupts(context.io, SIGINT, SIGTERM);
  interrupts.async_wait([&](boost::system::error_code error, int) {
    if (!error) context.io.stop();
  });
  cowd::run_to_end(context.io, disk.format->create(std::move(request)));
  const json made = cowd::run_to_end(context.io, disk.format->info(disk.top.disk));
  file.keep();
  data_file.keep();
  references->keep_made();
  const auto size = made.value("virtual-size", uint64_t{0});
  if (context.options.json)
    print_json(std::cout, made);
  else
    context.say("Created " + disk.spec.text() + ", a disk of " + cowd::format_size(size) + " (" +
                std::to_string(size) + " bytes).");
  return 0;
}

}  // namespace cowctl
