// SPDX-License-Identifier: GPL-2.0-or-later
// When cowd begins to serve disks of domains: at its start, or, where xenstored comes up
// later than cowd (which is early in the boot), as soon as it can. It tries again by itself, as
// domains may end meanwhile, and with each request.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cowd/daemon/domain_devices.hh"
#include "cowd/daemon/vbds.hh"

namespace cowd {

// The coroutines may be awaited from any executor.
class XenLink {
 public:
  // How Xen is reached; other than it is only in tests.
  struct Access {
    bool (*is_here)() = xen_is_here;
    // May block.
    std::function<std::unique_ptr<XenHost>(const std::vector<std::string>& directories)> open =
        open_xen;
    std::chrono::milliseconds again{5000};
  };

  XenLink(boost::asio::io_context& io, DomainDevices& devices, EventRing& events,
          const Config& config, Access access);

  // Throws Error: ENOSYS where there is no Xen, or why it cannot be talked to.
  Task<Vbds*> get();
  // The manager has taken up its devices: from here on get() gives something.
  Task<> start();

 private:
  Task<Vbds*> get_here();
  Task<> open();
  Task<> start_here();
  Task<> until_served(std::string told);

  boost::asio::io_context& io_;
  DomainDevices& devices_;
  EventRing& events_;
  const Config& config_;
  const Access access_;
  boost::asio::strand<boost::asio::io_context::executor_type> strand_;

  // On strand_:
  std::unique_ptr<Vbds> vbds_;  // once it is there it stays: what it has begun refers to it
  bool serves_ = false;
  bool opening_ = false;
  bool started_ = false;
  SignalEvent changed_;
};

}  // namespace cowd
