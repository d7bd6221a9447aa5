// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/store_removals.hh"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <utility>

#include "cowd/daemon/blocking_call.hh"
#include "cowd/daemon/error_id.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace asio = boost::asio;

namespace {

// It is not what its tags say, another host's, or a saved domain's.
bool is_final(const Error& error) { return error.code() == EUCLEAN || error.code() == EPERM; }

}  // namespace

StoreRemovals::StoreRemovals(asio::any_io_executor strand,
                             std::function<void(const TransientStore&)> remove, EventRing& events,
                             Pauses pauses)
    : strand_(std::move(strand)), remove_(std::move(remove)), events_(events), pauses_(pauses) {}

// Nothing if it is gone, by whomever.
Task<std::optional<Error>> StoreRemovals::try_once(const TransientStore& store) {
  try {
    co_await blocking(remove_, store);
  } catch (const Error& error) {
    if (error.code() != ENOENT) co_return error;
  } catch (const std::exception& error) {
    co_return Error(EIO, error.what());
  }
  co_return std::nullopt;
}

void StoreRemovals::tell(const std::string& of, const TransientStore& store, const Error& error) {
  const std::string id = new_error_id();
  const std::string sentence = text(
      "The transient store ", store.uuid, " (", store.path, ") of ", of, " could not be removed. ",
      error.what(), is_final(error) ? " cowd leaves it alone." : " cowd goes on trying.");
  log(Level::error, sentence, {of, id});
  events_.add("io-error", of, sentence, id);
}

Task<> StoreRemovals::remove(std::string of, TransientStore store) {
  const std::optional<Error> error = co_await try_once(store);
  if (!error) co_return;
  tell(of, store, *error);
  if (is_final(*error) || !waiting_.emplace(store.uuid, error->what()).second) co_return;
  asio::co_spawn(strand_, go_on(std::move(of), std::move(store)), asio::detached);
}

Task<> StoreRemovals::go_on(std::string of, TransientStore store) {
  auto pause = pauses_.first;
  for (;; pause = std::min(2 * pause, pauses_.most)) {
    asio::steady_timer timer(strand_, pause);
    co_await timer.async_wait(asio::use_awaitable);
    const std::optional<Error> error = co_await try_once(store);
    if (!error) break;
    std::string& why = waiting_[store.uuid];
    if (why != error->what()) tell(of, store, *error);
    why = error->what();
    if (!is_final(*error)) continue;
    waiting_.erase(store.uuid);
    co_return;
  }
  waiting_.erase(store.uuid);
  const std::string sentence =
      text("The transient store ", store.uuid, " (", store.path, ") of ", of, " is removed now.");
  log(Level::info, sentence, {of, {}});
  events_.add("store-removed", of, sentence);
}

std::string StoreRemovals::why(const std::string& uuid) const {
  const auto found = waiting_.find(uuid);
  return found == waiting_.end() ? std::string() : found->second;
}

}  // namespace cowd
