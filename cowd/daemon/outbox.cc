// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/outbox.hh"

#include <algorithm>
#include <array>

namespace cowd {

std::vector<Outbox::Refused> Outbox::send(Channel& channel) {
  std::vector<Refused> refused;
  std::array<dmu_msg, kBatch> batch;
  std::array<int, kBatch> results;
  while (!waiting_.empty()) {
    size_t count = std::min(waiting_.size(), kBatch);
    for (size_t i = 0; i < count; ++i) {
      batch[i] = waiting_[i].msg;
      if (!waiting_[i].payload.empty())
        batch[i].data = reinterpret_cast<uintptr_t>(waiting_[i].payload.data());
    }
    channel.send({batch.data(), count}, {results.data(), count});
    for (size_t i = 0; i < count; ++i) {
      if (results[i] < 0) refused.push_back({std::move(waiting_.front()), -results[i]});
      waiting_.pop_front();
    }
  }
  return refused;
}

}  // namespace cowd
