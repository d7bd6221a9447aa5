// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/common/parallel.hh"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/experimental/parallel_group.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <exception>
#include <utility>
#include <vector>

namespace cowd {
namespace {

namespace asio = boost::asio;

constexpr size_t kWritesAtOnce = 16;

struct Shared {
  size_t next = 0;
  size_t count = 0;
  std::function<Task<>(size_t)> work;
  std::exception_ptr failure;
};

Task<> worker(Shared& shared) {
  while (!shared.failure && shared.next < shared.count) {
    const size_t mine = shared.next++;
    try {
      co_await shared.work(mine);
    } catch (...) {
      if (!shared.failure) shared.failure = std::current_exception();
    }
  }
}

}  // namespace

Task<> for_each_parallel(size_t count, size_t limit, std::function<Task<>(size_t)> work) {
  Shared shared{0, count, std::move(work), nullptr};
  const size_t workers = std::min(count, limit);
  if (workers == 1) {
    co_await worker(shared);
  } else if (workers > 1) {
    auto executor = co_await asio::this_coro::executor;
    using Op = decltype(asio::co_spawn(executor, worker(shared), asio::deferred));
    std::vector<Op> ops;
    for (size_t i = 0; i < workers; i++)
      ops.push_back(asio::co_spawn(executor, worker(shared), asio::deferred));
    auto group = asio::experimental::make_parallel_group(std::move(ops));
    co_await group.async_wait(asio::experimental::wait_for_all(), asio::use_awaitable);
  }
  if (shared.failure) std::rethrow_exception(shared.failure);
}

Task<> write_durably(Disk& disk, const Writes& writes) {
  if (writes.size() == 1) {
    co_await disk.write_durably(writes[0].first, *writes[0].second);
    co_return;
  }
  const std::function<Task<>(size_t)> write = [&](size_t i) -> Task<> {
    co_await disk.write_at(writes[i].first, *writes[i].second);
  };
  co_await for_each_parallel(writes.size(), kWritesAtOnce, write);
  co_await disk.flush();
}

}  // namespace cowd
