// SPDX-License-Identifier: GPL-2.0-or-later
// Transient stores that are to go. What stands in the way may pass (LVM's lock, a program that
// still has the store open, a server that LVM waits for), so that it is tried again, ever less
// often, until the store is gone or it is certain that it stays.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "cowd/core/error.hh"
#include "cowd/daemon/event_ring.hh"
#include "cowd/daemon/transient.hh"
#include "formats/plugin.hh"

namespace cowd {

// One strand, on which all of it is called and goes on; it outlives that strand's work.
class StoreRemovals {
 public:
  struct Pauses {
    std::chrono::milliseconds first{5000};
    std::chrono::milliseconds most{300000};
  };
  // `remove` may block; it throws Error as TransientStores::remove does.
  StoreRemovals(boost::asio::any_io_executor strand,
                std::function<void(const TransientStore&)> remove, EventRing& events,
                Pauses pauses);

  // Returns after the first try. `of` is whose it was, for sentences.
  Task<> remove(std::string of, TransientStore store);

  // Why the last try failed, of one that is tried again; empty: it is none.
  std::string why(const std::string& uuid) const;

 private:
  Task<std::optional<Error>> try_once(const TransientStore& store);
  Task<> go_on(std::string of, TransientStore store);
  void tell(const std::string& of, const TransientStore& store, const Error& error);

  boost::asio::any_io_executor strand_;
  std::function<void(const TransientStore&)> remove_;
  EventRing& events_;
  Pauses pauses_;
  std::map<std::string, std::string> waiting_;  // by UUID
};

}  // namespace cowd
