// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/space_watch.hh"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>

#include "cowd/core/error.hh"
#include "cowd/core/units.hh"
#include "cowd/daemon/blocking_call.hh"
#include "cowd/daemon/error_id.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/lvm.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace asio = boost::asio;

namespace {

// However many writes find no room.
constexpr std::chrono::milliseconds kBetweenLooks{1000};

}  // namespace

SpaceWatch::SpaceWatch(asio::io_context& io, DeviceManager& devices, EventRing& events,
                       const Config::Space& settings)
    : strand_(asio::make_strand(io)),
      devices_(devices),
      events_(events),
      settings_(settings),
      timer_(strand_) {}

void SpaceWatch::start() {
  asio::co_spawn(
      strand_, [this]() -> Task<> { co_await run(); }, asio::detached);
}

void SpaceWatch::look_now() {
  asio::post(strand_, [this] {
    asked_ = true;
    timer_.cancel();
  });
}

Task<> SpaceWatch::run() {
  check_hook();
  for (;;) {
    asked_ = false;
    co_await look();
    const auto looked = Clock::now();
    co_await sleep_until(looked + kBetweenLooks, false);
    const bool off = settings_.interval.count() == 0;
    const auto next = off ? Clock::time_point::max() : looked + settings_.interval;
    co_await sleep_until(next, true);
  }
}

// `wake`: not longer than until a look is asked for.
Task<> SpaceWatch::sleep_until(Clock::time_point when, bool wake) {
  while (!(wake && asked_) && Clock::now() < when) {
    timer_.expires_at(when);
    co_await timer_.async_wait(asio::as_tuple(asio::use_awaitable));
  }
}

// Said at the start, while somebody may be looking; and again whenever it is to run.
void SpaceWatch::check_hook() {
  if (settings_.hook.empty()) return;
  try {
    check_space_hook(settings_.hook);
  } catch (const Error& error) {
    hook_failed(error.what());
  }
}

Task<> SpaceWatch::look() {
  try {
    auto users = co_await devices_.space_users();
    take_users(users);
  } catch (const std::exception& error) {
    complain(error.what());
  }
  bool pools = false;
  for (const auto& [id, watched] : watched_) {
    if (id.kind == SpaceId::Kind::thin_pool) pools = true;
    if (id.kind == SpaceId::Kind::thin_pool || watched->looking) continue;
    watched->looking = true;
    asio::co_spawn(
        strand_, [this, watched = watched]() -> Task<> { co_await look_at(watched); },
        asio::detached);
  }
  if (!pools || looking_at_pools_) co_return;
  looking_at_pools_ = true;
  asio::co_spawn(
      strand_, [this]() -> Task<> { co_await look_at_pools(); }, asio::detached);
}

// What nobody uses any more is forgotten, and told anew if it comes back.
void SpaceWatch::take_users(const std::vector<SpaceUser>& users) {
  auto known = std::exchange(watched_, {});
  for (const SpaceUser& user : users) {
    for (const StoreSpace& each : user.spaces) {
      WatchedPtr& watched = watched_[each.space];
      if (!watched) {
        auto before = known.find(each.space);
        watched = before != known.end() ? before->second : std::make_shared<Watched>(settings_);
        watched->id = each.space;
        watched->devices.clear();
        watched->waiting.clear();
        watched->files.clear();
      }
      // Twice by one device, where a loop device lies between.
      const bool again = !watched->devices.empty() && watched->devices.back() == user.device;
      if (!again) watched->devices.push_back(user.device);
      if (!again && user.waiting) watched->waiting.push_back(user.device);
      if (!each.file.empty()) watched->files.push_back(each.file);
    }
  }
}

Task<> SpaceWatch::look_at(WatchedPtr watched) {
  try {
    auto figures = co_await blocking(look_at_filesystem, watched->files);
    if (figures) judge(watched, *figures);
  } catch (const std::exception& error) {
    complain(error.what());
  }
  watched->looking = false;
}

Task<> SpaceWatch::look_at_pools() {
  std::vector<std::string> uuids;
  for (const auto& [id, watched] : watched_)
    if (id.kind == SpaceId::Kind::thin_pool) uuids.push_back(id.id);
  try {
    auto pools = co_await blocking(lvm::pools, uuids);
    for (const lvm::Pool& pool : pools) {
      auto found = watched_.find({SpaceId::Kind::thin_pool, pool.uuid});
      if (found == watched_.end()) continue;
      SpaceFigures figures;
      figures.name = pool.name;
      figures.size = pool.bytes;
      figures.percent = pool.data_percent;
      figures.used =
          static_cast<uint64_t>(static_cast<double>(pool.bytes) * pool.data_percent / 100);
      figures.metadata_percent = pool.metadata_percent;
      judge(found->second, figures);
    }
  } catch (const std::exception& error) {
    complain(error.what());
  }
  looking_at_pools_ = false;
}

void SpaceWatch::judge(const WatchedPtr& watched, const SpaceFigures& figures) {
  auto change = watched->state.judge(figures);
  std::string full = how_full(watched->id.kind, figures);
  if (change == SpaceState::Change::low) {
    std::string growth;
    if (figures.growth)
      growth = text(", and what lies there may still ask for ", format_size(figures.growth));
    std::string sentence =
        text(full, growth, ". It holds stores of ", name_some(watched->devices),
             ". Make it larger or free room in it; writes that find none wait or fail.");
    log(Level::warning, sentence);
    events_.add("space-low", "", sentence);
  } else if (change == SpaceState::Change::ok) {
    std::string sentence = text(full, ": it has room again.");
    log(Level::info, sentence);
    events_.add("space-ok", "", sentence);
  }
  if (!watched->state.begin_hook(SpaceState::Clock::now())) return;
  asio::co_spawn(
      strand_, [this, watched]() -> Task<> { co_await run_hook(watched); }, asio::detached);
}

Task<> SpaceWatch::run_hook(WatchedPtr watched) {
  SpaceHookCall call{settings_.hook,   settings_.hook_timeout,   !watched->waiting.empty(),
                     watched->id.kind, watched->state.figures(), watched->devices};
  std::string failure;
  try {
    std::string how = co_await blocking(run_space_hook, call);
    std::string sentence = text("For ", call.figures.name, ": ", how);
    log(Level::info, sentence);
    events_.add("space-hook", "", sentence);
    co_await devices_.space_added(watched->devices);
    look_now();
  } catch (const std::exception& error) {
    failure = error.what();
  }
  if (!failure.empty()) hook_failed(text("For ", call.figures.name, ": ", failure));
  watched->state.end_hook();
}

void SpaceWatch::hook_failed(const std::string& sentence) {
  std::string id = new_error_id();
  log(Level::error, sentence, {{}, id});
  events_.add("space-hook-failed", "", sentence, id);
}

// What could not be looked at is no event: nothing of it is known to be wrong.
void SpaceWatch::complain(const std::string& sentence) {
  if (auto left_out = complaints_.pass())
    log(Level::warning,
        *left_out ? text(sentence, " (", *left_out, " more like it were not shown)") : sentence);
}

}  // namespace cowd
