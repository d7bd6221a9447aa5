// SPDX-License-Identifier: GPL-2.0-or-later
// Images that nobody serves, opened to read or write the disk in them.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "cowd/cowctl/context.hh"

namespace cowctl {

// Throws EBUSY where the top is in use. `verb`: what is not done then, "committed"; `or_else`:
// another way out, ", or use --force-share".
void refuse_in_use(const OfflineDisk& disk, const std::string& verb,
                   const std::string& or_else = {});

// After open_disk(). The disks live as long as `disk`, or as the references do.
std::unique_ptr<cowd::Image> open_read_only(Context& context, const OfflineDisk& disk,
                                            std::shared_ptr<cowd::References> references);

// A file that is written to as an image of a growing format is made as long as that may need.
// Used on the io_context.
class WritableImage {
 public:
  WritableImage(const cowd::FormatDescriptor& format, std::shared_ptr<cowd::Disk> disk,
                std::shared_ptr<cowd::References> references)
      : format_(&format), disk_(std::move(disk)), references_(std::move(references)) {}

  // If it throws, the file is as long as it was.
  Task<std::unique_ptr<cowd::Image>> open();
  const std::shared_ptr<cowd::Disk>& disk() const { return disk_; }

 private:
  Task<std::unique_ptr<cowd::Image>> open_with_room();

  const cowd::FormatDescriptor* format_;
  std::shared_ptr<cowd::Disk> disk_;
  std::shared_ptr<cowd::References> references_;
};

// Whether it can be made longer: a file, not a device.
bool is_file(const cowd::Disk& disk);

}  // namespace cowctl
