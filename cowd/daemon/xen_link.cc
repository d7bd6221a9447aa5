// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/xen_link.hh"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
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
std::shared_ptr<std::unique_ptr<XenHost>> open_shared(const decltype(XenLink::Access::open)& open,
                                                      const std::vector<std::string>& directories) {
  auto host = std::make_shared<std::unique_ptr<XenHost>>(open(directories));
  Vbds::watch(**host);
  return host;
}

}  // namespace

XenLink::XenLink(asio::io_context& io, DomainDevices& devices, EventRing& events,
                 const Config& config, Access access)
    : io_(io),
      devices_(devices),
      events_(events),
      config_(config),
      access_(std::move(access)),
      strand_(asio::make_strand(io)),
      changed_(strand_) {}

Task<Vbds*> XenLink::get() { return on(strand_, get_here()); }

Task<Vbds*> XenLink::get_here() {
  if (!access_.is_here())
    throw Error(ENOSYS,
                "This host is no domain 0 of Xen, and driver domains are not served: let cowd run "
                "in domain 0, and name no backend= in the disk.");
  while (!started_ || opening_) co_await changed_.wait();
  if (serves_) co_return vbds_.get();
  opening_ = true;
  std::exception_ptr error;
  try {
    co_await open();
    serves_ = true;
  } catch (...) {
    error = std::current_exception();
  }
  opening_ = false;
  changed_.notify();
  if (error) std::rethrow_exception(error);
  log(Level::info, "cowd serves disks of domains.");
  co_return vbds_.get();
}

Task<> XenLink::open() {
  if (!vbds_) {
    auto directories = PluginLoader::default_directories(config_.paths.plugin_dirs);
    auto host = co_await blocking(open_shared, access_.open, directories);
    vbds_ =
        std::make_unique<Vbds>(io_, devices_, events_, config_, std::move(*host), Vbds::Pauses());
  }
  co_await vbds_->start();
}

Task<> XenLink::start() { return on(strand_, start_here()); }

Task<> XenLink::start_here() {
  started_ = true;
  changed_.notify();
  if (!access_.is_here()) co_return;
  std::string why;
  try {
    co_await get_here();
  } catch (const Error& error) {
    why = error.what();
  }
  if (why.empty()) co_return;
  log(Level::info, text("Disks of domains are served as soon as that can be. ", why));
  asio::co_spawn(strand_, until_served(why), asio::detached);
}

Task<> XenLink::until_served(std::string told) {
  while (!serves_) {
    asio::steady_timer pause(strand_, access_.again);
    co_await pause.async_wait(asio::use_awaitable);
    std::string why;
    try {
      co_await get_here();
    } catch (const Error& error) {
      why = error.what();
    }
    if (!why.empty() && why != told) log(Level::warning, why);
    told = why;
  }
}

}  // namespace cowd
