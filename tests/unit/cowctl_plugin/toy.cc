// SPDX-License-Identifier: GPL-2.0-or-later
// A format for cowctl_test. Its store begins with a line, "toy ERRORS LEAKS\n", that
// says what a check is to find, or "toy ERRORS LEAKS MILLISECONDS\n", with the time that it
// takes for its second half; its map is 64 KiB from the store, 64 KiB from the base
// and 128 KiB of nothing, over and over.
#include <utility>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>

#include "cowd/core/error.hh"
#include "formats/plugin.hh"

namespace {

using namespace cowd;

constexpr uint64_t kRun = 128;  // sectors

Task<std::string> read_line(std::shared_ptr<Disk> top) {
  std::vector<std::byte> block(top->block_size());
  co_await top->read_at(0, block);
  const std::string text(reinterpret_cast<const char*>(block.data()), block.size());
  if (!text.starts_with("toy "))
    throw Error(EINVAL, top->name() + " is no toy store; make one with cowctl create.");
  co_return text.substr(0, text.find('\n'));
}

class ToyImage : public Image {
 public:
  explicit ToyImage(OpenRequest request) : request_(std::move(request)) {}
  uint64_t sectors() const override { return request_.top->size() / 512; }
  std::vector<Destination> destinations() const override { return {}; }
  uint32_t discard_granularity() const override { return 0; }
  std::vector<Answer> initial() const override { return {}; }
  Task<std::vector<Answer>> resolve(Range, Access) override { co_return std::vector<Answer>(); }
  void promoted(const Promotion&) override {}
  Task<> commit(uint64_t, bool) override { co_return; }
  Task<std::vector<Answer>> discard(Range) override { co_return std::vector<Answer>(); }
  Task<std::vector<Answer>> zero(Range) override { co_return std::vector<Answer>(); }

  Task<std::vector<MapEntry>> map(Range range) override {
    std::vector<MapEntry> entries;
    for (uint64_t at = range.sector; at < range.end();) {
      const uint64_t end = std::min(range.end(), (at / kRun + 1) * kRun);
      MapEntry entry;
      entry.range = {at, end - at};
      const unsigned turn = at / kRun % 4;
      entry.depth = turn == 1 ? 1 : 0;
      entry.present = entry.data = turn < 2;
      entry.zero = turn >= 2;
      entry.has_offset = turn < 2;
      entry.offset = turn < 2 ? at * 512 : 0;
      if (turn < 2) entry.disk = turn == 0 ? "/store" : "/base";
      entries.push_back(entry);
      at = end;
    }
    co_return entries;
  }

  Task<> preserve() override { co_return; }
  Task<> close() override { co_return; }
  nlohmann::json stats() const override { return nlohmann::json::object(); }

 private:
  OpenRequest request_;
};

Task<> wait_for(std::chrono::milliseconds time) {
  boost::asio::steady_timer timer(co_await boost::asio::this_coro::executor, time);
  co_await timer.async_wait(boost::asio::use_awaitable);
}

Task<> create(CreateRequest request) {
  if (request.options.contains("hang")) co_await wait_for(std::chrono::hours(1));
  for (const auto& [name, value] : request.options)
    if (name != "errors" && name != "leaks" && name != "milliseconds")
      throw Error(EINVAL, "There is no option " + name + ".");
  std::string line = "toy " + request.options["errors"] + ' ' + request.options["leaks"];
  if (request.options.contains("milliseconds")) line += ' ' + request.options["milliseconds"];
  line += '\n';
  std::vector<std::byte> block(request.top->block_size());
  std::memcpy(block.data(), line.data(), line.size());
  co_await request.top->write_at(0, block);
  co_await request.top->flush();
}

Task<std::unique_ptr<Image>> open(OpenRequest request) {
  co_await read_line(request.top);
  co_return std::make_unique<ToyImage>(std::move(request));
}

Task<nlohmann::json> info(std::shared_ptr<Disk> top) {
  const std::string line = co_await read_line(top);
  co_return nlohmann::json{{"format", "toy"}, {"virtual-size", top->size()}, {"line", line}};
}

[[maybe_unused]] Task<CheckResult> check(CheckRequest request) {
  const std::string line = co_await read_line(request.top);
  unsigned errors = 0, leaks = 0, milliseconds = 0;
  std::sscanf(line.c_str(), "toy %u %u %u", &errors, &leaks, &milliseconds);
  if (milliseconds > 0) {
    request.progress(1, 2);
    co_await wait_for(std::chrono::milliseconds(milliseconds));
  }
  CheckResult result;
  (request.repair ? result.errors_fixed : result.errors) = errors;
  (request.repair ? result.leaks_fixed : result.leaks) = leaks;
  if (errors > 0) result.findings.push_back("A toy is broken.");
  result.total_granules = 256;
  result.allocated_granules = 64;
  co_return result;
}

constexpr FormatDescriptor describe() {
  FormatDescriptor format;
  format.name = TOY;
  format.description = "for a test";
  format.wants_base = true;
  format.create_options =
      "errors=how many a check is to find\nleaks=the same\n"
      "milliseconds=how long it takes\n";
  format.create = create;
  format.open = open;
  format.info = info;
#ifndef TOY_HAS_NO_CHECK
  format.check = check;
#endif
  return format;
}

}  // namespace

constinit const cowd::FormatDescriptor cowd_format = describe();
