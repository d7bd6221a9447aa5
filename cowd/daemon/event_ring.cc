// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/event_ring.hh"

#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/units.hh"

namespace cowd {

nlohmann::json to_json(const Event& event) {
  nlohmann::json json = {{"number", event.number},
                         {"time", event.time},
                         {"type", event.type},
                         {"device", event.device},
                         {"message", event.message}};
  if (!event.id.empty()) json["id"] = event.id;
  return json;
}

void EventRing::add(const std::string& type, const std::string& device, const std::string& message,
                    const std::string& id) {
  std::lock_guard lock(mutex_);
  events_.push_back(
      {++last_, format_rfc3339(std::chrono::system_clock::now()), type, device, message, id});
  if (events_.size() > kCapacity) events_.pop_front();
  for (auto& [subscription, wake] : wakes_) wake();
}

std::vector<Event> EventRing::after(uint64_t number, size_t most) const {
  std::lock_guard lock(mutex_);
  std::vector<Event> found;
  for (const Event& event : events_) {
    if (found.size() == most) break;
    if (event.number > number) found.push_back(event);
  }
  return found;
}

uint64_t EventRing::last() const {
  std::lock_guard lock(mutex_);
  return last_;
}

uint64_t EventRing::subscribe(std::function<void()> wake) {
  std::lock_guard lock(mutex_);
  wakes_[next_subscription_] = std::move(wake);
  return next_subscription_++;
}

void EventRing::unsubscribe(uint64_t subscription) {
  std::lock_guard lock(mutex_);
  wakes_.erase(subscription);
}

}  // namespace cowd
