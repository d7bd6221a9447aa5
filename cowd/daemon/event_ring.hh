// SPDX-License-Identifier: GPL-2.0-or-later
// The last events, for `cowctl events`.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace cowd {

struct Event {
  uint64_t number = 0;  // from 1 on, never reused in one run of cowd
  std::string time;     // RFC 3339
  std::string type;     // docs/control-protocol.md
  std::string device;   // empty: about cowd itself
  std::string message;
  std::string id;  // of a failure, as in the log
};

nlohmann::json to_json(const Event& event);

// Thread safe; never blocks on anything but its own short lock.
class EventRing {
 public:
  static constexpr size_t kCapacity = 1000;

  void add(const std::string& type, const std::string& device, const std::string& message,
           const std::string& id = {});

  // Those after `number` that are still held, oldest first, at most `most`.
  std::vector<Event> after(uint64_t number, size_t most = kCapacity) const;
  uint64_t last() const;

  // Calls `wake` after each new event, from the thread that adds it, until
  // unsubscribe() has returned. `wake` must be short and must not call back.
  uint64_t subscribe(std::function<void()> wake);
  void unsubscribe(uint64_t subscription);

 private:
  mutable std::mutex mutex_;
  std::deque<Event> events_;
  uint64_t last_ = 0;
  uint64_t next_subscription_ = 1;
  std::map<uint64_t, std::function<void()>> wakes_;
};

}  // namespace cowd
