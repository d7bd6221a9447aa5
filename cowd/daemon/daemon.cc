// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/daemon.hh"

#include <signal.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "build/config.h"
#include "cowd/core/async_io.hh"
#include "cowd/core/backing.hh"
#include "cowd/core/error.hh"
#include "cowd/core/helper.hh"
#include "cowd/core/host.hh"
#include "cowd/core/left_events.hh"
#include "cowd/core/plugin_loader.hh"
#include "cowd/core/references.hh"
#include "cowd/daemon/blocking_call.hh"
#include "cowd/daemon/commands.hh"
#include "cowd/daemon/control_server.hh"
#include "cowd/daemon/device_manager.hh"
#include "cowd/daemon/event_ring.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/service.hh"
#include "cowd/daemon/space_watch.hh"
#include "cowd/daemon/text.hh"
#include "cowd/daemon/xen_link.hh"

namespace cowd {

namespace {

namespace asio = boost::asio;

// Destroys the coroutines that are left while what they refer to is still there.
class Reactor : public asio::io_context {
 public:
  using asio::execution_context::shutdown;
  using asio::io_context::io_context;
};

class Daemon {
 public:
  Daemon(const Config& config, RunDir& run_dir, std::function<void()> reload)
      : config_(config),
        reload_(std::move(reload)),
        io_(static_cast<int>(config.process.threads)),
        plugins_(PluginLoader::default_directories(config.paths.plugin_dirs)),
        devices_(io_, config, environment(run_dir)),
        space_(io_, devices_, events_, config.space),
        xen_(io_, devices_, events_, config, {}),
        control_(io_, config.control.max_clients, events_, make_commands(devices_, xen_)),
        signals_(asio::make_strand(io_), SIGTERM, SIGINT, SIGHUP),
        watchdog_(io_) {
    take_over(run_dir);
  }

  void run() {
    listen();
    asio::co_spawn(io_, start(), [this](std::exception_ptr error) { ended(error); });
    asio::co_spawn(signals_.get_executor(), obey_signals(),
                   [this](std::exception_ptr error) { ended(error); });
    std::vector<std::thread> threads;
    for (unsigned i = 1; i < config_.process.threads; ++i)
      threads.emplace_back([this] { io_.run(); });
    io_.run();
    for (auto& thread : threads) thread.join();
    io_.shutdown();
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  // On the socket that the service manager keeps open over a restart, if it does.
  void listen() {
    int socket = take_listening_socket();
    if (socket < 0) {
      control_.listen(config_.socket_path());
      return;
    }
    if (!listens_at(socket, config_.socket_path()))
      log(Level::warning, text("cowd.socket listens at another path than ", config_.socket_path(),
                               ", and so does cowd. Make ListenStream= (systemctl edit "
                               "cowd.socket) and paths.socket the same."));
    control_.listen_on(socket);
  }

  // What those before us left, or told nobody.
  void take_over(const RunDir& run_dir) {
    remove_left_hold_files(run_dir.path());
    for (const LeftEvent& event : take_left_events(run_dir.path())) {
      const std::string sentence = text("While no cowd answered: ", event.sentence);
      log(Level::warning, sentence, {{}, event.id});
      events_.add("xen-error", "", sentence, event.id);
    }
  }

  DeviceEnvironment environment(RunDir& run_dir) {
    set_backing_settings(backing_settings(run_dir));
    set_reference_roots(config_.paths.reference_roots);
    DeviceEnvironment environment;
    environment.io = make_async_io(io_);
    environment.plugins = &plugins_;
    environment.events = &events_;
    environment.run_dir = &run_dir;
    environment.session = config_.devices.session;
    environment.metadata_cache = config_.devices.metadata_cache;
    environment.no_space = [this] { space_.look_now(); };
    try {
      environment.host_id = host_id();
      environment.boot_id = boot_id();
    } catch (const Error& error) {
      // Formats that sign what they write say so again when they are attached.
      log(Level::warning, error.what());
    }
    log(Level::info, text("cowd ", DMU_VERSION, " reads and writes metadata by ",
                          environment.io->engine(), "."));
    return environment;
  }

  BackingSettings backing_settings(const RunDir& run_dir) const {
    BackingSettings settings;
    settings.run_dir = run_dir.path();
    settings.disks_dir = config_.paths.disks_dir;
    if (!config_.devices.wait_for_backing)
      settings.loss_seconds = static_cast<uint64_t>(config_.devices.backing_loss_timeout.count());
    settings.background = true;
    return settings;
  }

  // Requests are taken from here on, too: a hung backing must not hold up the rest.
  Task<> start() {
    co_await devices_.reattach_all();
    space_.start();
    co_await xen_.start();
    watchdog_.start();
    events_.add("started", "", text("cowd ", DMU_VERSION, " has started."));
    notify_ready("serving");
    log(Level::info, text("cowd ", DMU_VERSION, " has started."));
    co_await blocking(release_unused_backings);
  }

  Task<> obey_signals() {
    for (;;) {
      auto [error, signal] = co_await signals_.async_wait(asio::as_tuple(asio::use_awaitable));
      if (error) co_return;
      if (signal != SIGHUP) break;
      co_await blocking(&std::function<void()>::operator(), &reload_);
    }
    notify_stopping();
    log(Level::info, "cowd stops: it makes everything durable and leaves its devices up.");
    events_.add("stopping", "", "cowd stops and leaves its devices up.");
    control_.stop();
    co_await devices_.stop_all();
    log(Level::info, "cowd has stopped.");
    watchdog_.stop();
    io_.stop();
  }

  void ended(std::exception_ptr error) {
    if (!error) return;
    failure_ = error;
    io_.stop();
  }

  const Config& config_;
  std::function<void()> reload_;
  Reactor io_;
  EventRing events_;
  PluginLoader plugins_;
  DeviceManager devices_;
  SpaceWatch space_;
  XenLink xen_;
  ControlServer control_;
  asio::signal_set signals_;
  Watchdog watchdog_;
  std::exception_ptr failure_;
};

}  // namespace

void run_daemon(const Config& config, RunDir& run_dir, std::function<void()> reload) {
  Daemon daemon(config, run_dir, std::move(reload));
  daemon.run();
}

}  // namespace cowd
