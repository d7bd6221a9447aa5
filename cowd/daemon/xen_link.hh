// SPDX-License-Identifier: GPL-2.0-or-later
// When cowd begins to serve disks of domains: at its start, or, where xenstored comes up
// later than cowd (which is early in the boot), with the first request for one.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <functional>
#include <memory>

#include "cowd/daemon/device_manager.hh"
#include "cowd/daemon/vbds.hh"

namespace cowd {

// The coroutines may be awaited from any executor.
class XenLink {
 public:
  XenLink(boost::asio::io_context& io, DeviceManager& devices, EventRing& events,
          const Config& config);

  // Throws Error: ENOSYS where there is no Xen, or why it cannot be talked to.
  Task<Vbds*> get();
  // The manager has taken up its devices: from here on get() gives something.
  Task<> start();

 private:
  Task<Vbds*> get_here();
  Task<> start_here();

  boost::asio::io_context& io_;
  DeviceManager& devices_;
  EventRing& events_;
  const Config& config_;
  boost::asio::strand<boost::asio::io_context::executor_type> strand_;

  // On strand_:
  std::unique_ptr<Vbds> vbds_;
  bool opening_ = false;
  bool started_ = false;
  SignalEvent changed_;
};

}  // namespace cowd
