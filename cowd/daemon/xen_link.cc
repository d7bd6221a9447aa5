// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/xen_link.hh"

#include <utility>

#include "cowd/core/error.hh"
#include "cowd/core/plugin_loader.hh"
#include "cowd/daemon/blocking_call.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/on.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace asio = boost::asio;

namespace {

// Through `blocking`, which wants what can be copied.
std::shared_ptr<std::unique_ptr<XenHost>> open_shared(const std::vector<std::string>& directories) {
  return std::make_shared<std::unique_ptr<XenHost>>(open_xen(directories));
}

}  // namespace

XenLink::XenLink(asio::io_context& io, DeviceManager& devices, EventRing& events,
                 const Config& config)
    : io_(io),
      devices_(devices),
      events_(events),
      config_(config),
      strand_(asio::make_strand(io)),
      changed_(strand_) {}

Task<Vbds*> XenLink::get() { return on(strand_, get_here()); }

Task<Vbds*> XenLink::get_here() {
  if (!xen_is_here())
    throw Error(ENOSYS,
                "This host is no domain 0 of Xen, and driver domains are not served: let cowd run "
                "in domain 0, and name no backend= in the disk.");
  while (!started_ || opening_) co_await changed_.wait();
  if (vbds_) co_return vbds_.get();
  opening_ = true;
  std::exception_ptr error;
  try {
    auto directories = PluginLoader::default_directories(config_.paths.plugin_dirs);
    auto host = co_await blocking(open_shared, directories);
    auto vbds =
        std::make_unique<Vbds>(io_, devices_, events_, config_, std::move(*host), Vbds::Pauses());
    co_await vbds->start();
    vbds_ = std::move(vbds);
  } catch (...) {
    error = std::current_exception();
  }
  opening_ = false;
  changed_.notify();
  if (error) std::rethrow_exception(error);
  log(Level::info, "cowd serves disks of domains.");
  co_return vbds_.get();
}

Task<> XenLink::start() { return on(strand_, start_here()); }

Task<> XenLink::start_here() {
  started_ = true;
  changed_.notify();
  if (!xen_is_here()) co_return;
  try {
    co_await get_here();
  } catch (const Error& error) {
    log(Level::info,
        text("Disks of domains are served from the first request for one on. ", error.what()));
  }
}

}  // namespace cowd
