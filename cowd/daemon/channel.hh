// SPDX-License-Identifier: GPL-2.0-or-later
// The channel as a session sees it: the kernel's, through libdmu, or a test's.
#pragma once

#include <linux/dm-userspace.h>

#include <boost/asio/any_io_executor.hpp>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "formats/plugin.hh"

namespace cowd {

// One strand at a time.
class Channel {
 public:
  virtual ~Channel() = default;
  // Returns when receive() may have something to give, at once after cancel().
  virtual Task<> readable() = 0;
  // Ends a readable() that waits, and those to come.
  virtual void cancel() = 0;
  // How many messages were read; 0: none now. Throws Error(ENODEV) once the
  // device is gone.
  virtual size_t receive(std::span<dmu_msg> messages) = 0;
  // results[i]: 0 or a negative errno for messages[i]. Throws Error(ENODEV).
  virtual void send(std::span<const dmu_msg> messages, std::span<int> results) = 0;
  // Of the kernel's extents when the channel was attached.
  virtual uint64_t generation() const = 0;
};

// Attaches to the device with `key`. May block; off the strands. `executor`: the
// strand of the session. Throws Error, naming `device`.
std::unique_ptr<Channel> open_kernel_channel(boost::asio::any_io_executor executor,
                                             const std::string& key, const std::string& device);

}  // namespace cowd
