// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/cowctl/offline_image.hh"

#include <exception>
#include <utility>

#include "cowd/core/host.hh"
#include "cowd/core/image_io.hh"
#include "cowd/core/run.hh"

namespace cowctl {

void refuse_in_use(const OfflineDisk& disk, const std::string& verb, const std::string& or_else) {
  if (cowd::backing_in_use(disk.spec.top))
    throw Error(EBUSY, disk.spec.top.text() + " is in use, so it cannot be " + verb +
                           "; detach it first" + or_else + ".");
}

std::unique_ptr<cowd::Image> open_read_only(Context& context, const OfflineDisk& disk,
                                            std::shared_ptr<cowd::References> references) {
  cowd::OpenRequest request;
  request.top = disk.top.disk;
  request.base = disk.base.disk;
  request.read_only = true;
  request.references = std::move(references);
  request.host_id = cowd::host_id();
  request.boot_id = cowd::boot_id();
  return cowd::run_to_end(context.io, disk.format->open(std::move(request)));
}

bool is_file(const cowd::Disk& disk) {
  const auto* block = dynamic_cast<const cowd::BlockDisk*>(&disk);
  return block && block->device() == 0;
}

Task<std::unique_ptr<cowd::Image>> WritableImage::open() {
  const uint64_t length = disk_->size();
  std::exception_ptr failure;
  try {
    std::unique_ptr<cowd::Image> image = co_await open_with_room();
    co_return image;
  } catch (...) {
    failure = std::current_exception();
  }
  if (disk_->size() > length) co_await disk_->resize(length);
  std::rethrow_exception(failure);
}

Task<std::unique_ptr<cowd::Image>> WritableImage::open_with_room() {
  if (format_->room && is_file(*disk_)) {
    const uint64_t room = co_await format_->room(disk_);
    if (room > disk_->size()) co_await disk_->resize(room);
  }
  cowd::OpenRequest request;
  request.top = disk_;
  request.references = references_;
  request.host_id = cowd::host_id();
  request.boot_id = cowd::boot_id();
  request.invalidate = cowd::ImageIo::invalidate;
  co_return co_await format_->open(std::move(request));
}

}  // namespace cowctl
