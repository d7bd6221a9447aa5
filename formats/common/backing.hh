// SPDX-License-Identifier: GPL-2.0-or-later
// The backing file of a qcow or qcow2 image, named in it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "formats/common/beneath.hh"
#include "formats/plugin.hh"

namespace cowd {

inline constexpr uint32_t kMaxBackingName = 1023;  // bytes, of what an image can keep

struct BackingName {
  std::string file;    // as the image has it; empty: none
  std::string format;  // of a plugin
};

// Takes backing_file= and backing_fmt= out of the options; the name is kept as it is given, so
// that both can be moved together. `format`: "qcow2". The result: the bytes of its disk; 0 without
// one.
Task<uint64_t> take_backing(CreateRequest& request, const std::string& format, BackingName& name);

// Throws for what no image can name, and where the top cannot be written to.
void require_nameable(const RebaseRequest& request);

// Its destinations come behind the `first_dest` of the image.
Task<std::unique_ptr<Beneath>> open_backing(const OpenRequest& request, const BackingName& name,
                                            uint32_t first_dest);

}  // namespace cowd
