// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/common/backing.hh"

#include <utility>

#include "cowd/core/error.hh"
#include "formats/common/options.hh"

namespace cowd {

Task<uint64_t> take_backing(CreateRequest& request, const std::string& format, BackingName& name) {
  name.file = take_text(request.options, "backing_file", "");
  name.format = take_text(request.options, "backing_fmt", "");
  if (request.base)
    throw Error(EINVAL, "What lies under a " + format +
                            " image is named in it: say -o backing_file=" + request.base->name() +
                            ",backing_fmt=... instead of a base.");
  if (name.file.empty() && !name.format.empty())
    throw Error(EINVAL, "Option backing_fmt is given without backing_file.");
  if (name.file.empty()) co_return 0;
  if (name.format.empty())
    throw Error(EINVAL,
                "Option backing_file needs backing_fmt (raw, qcow2, ...): the format is "
                "never guessed.");
  if (name.file.size() > kMaxBackingName)
    throw Error(ENAMETOOLONG,
                "The name of the backing file is longer than the 1023 bytes that "
                "an image can keep.");
  if (!request.references) co_return 0;
  const std::unique_ptr<Image> image =
      co_await request.references->image(*request.top, name.file, name.format);
  co_return image->sectors() * 512;
}

void require_nameable(const RebaseRequest& request) {
  const auto refuse = [&](int code, const std::string& what) {
    throw Error(code, request.top->name() + what);
  };
  if (request.top->read_only()) refuse(EROFS, " cannot be written to: make it writable.");
  if (request.file.empty()) return;
  if (request.format.empty())
    refuse(EINVAL, " is to lie on " + request.file +
                       ", and in which format that is is never guessed: say it with -F.");
  if (request.file.size() > kMaxBackingName || request.file.find('\0') != std::string::npos)
    refuse(ENAMETOOLONG,
           " cannot name a backing file with a name of more than 1023 bytes, or with a NUL in "
           "it: give another name.");
}

Task<std::unique_ptr<Beneath>> open_backing(const OpenRequest& request, const BackingName& name,
                                            uint32_t first_dest) {
  if (!request.references)
    throw Error(EINVAL, request.top->name() + " lies on " + name.file +
                            ", and no other files are opened here.");
  std::unique_ptr<Image> image =
      co_await request.references->image(*request.top, name.file, name.format);
  co_return std::make_unique<Beneath>(std::move(image), first_dest, request.top->block_size());
}

}  // namespace cowd
