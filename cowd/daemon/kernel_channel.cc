// SPDX-License-Identifier: GPL-2.0-or-later
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "cowd/core/error.hh"
#include "cowd/daemon/channel.hh"
#include "cowd/daemon/text.hh"
#include "libdmu/dmu.h"

namespace cowd {

namespace {

namespace asio = boost::asio;

struct CloseChannel {
  void operator()(dmu_channel* channel) const { dmu_channel_close(channel); }
};
using ChannelHandle = std::unique_ptr<dmu_channel, CloseChannel>;

class KernelChannel : public Channel {
 public:
  KernelChannel(asio::any_io_executor executor, ChannelHandle channel, std::string device)
      : channel_(std::move(channel)),
        file_(std::move(executor), dmu_channel_fd(channel_.get())),
        device_(std::move(device)) {}

  // The file is libdmu's to close, and only once.
  ~KernelChannel() override { file_.release(); }

  Task<> readable() override {
    if (!cancelled_)
      co_await file_.async_wait(asio::posix::descriptor_base::wait_read,
                                asio::as_tuple(asio::use_awaitable));
  }

  void cancel() override {
    cancelled_ = true;
    file_.cancel();
  }

  size_t receive(std::span<dmu_msg> messages) override {
    ssize_t count = dmu_channel_receive(channel_.get(), messages.data(), messages.size());
    if (count == -EAGAIN) return 0;
    if (count < 0) throw broken(static_cast<int>(-count));
    return static_cast<size_t>(count);
  }

  void send(std::span<const dmu_msg> messages, std::span<int> results) override {
    ssize_t sent =
        dmu_channel_send(channel_.get(), messages.data(), messages.size(), results.data());
    if (sent < 0) throw broken(static_cast<int>(-sent));
  }

  uint64_t generation() const override { return dmu_channel_attach(channel_.get())->gen; }

 private:
  Error broken(int code) const {
    if (code == ENODEV) return Error(code, text("The device ", device_, " was removed."));
    return Error(code, text("The kernel refused the channel of ", device_, ": ",
                            std::generic_category().message(code), "."));
  }

  ChannelHandle channel_;
  asio::posix::stream_descriptor file_;
  std::string device_;
  bool cancelled_ = false;
};

}  // namespace

std::unique_ptr<Channel> open_kernel_channel(asio::any_io_executor executor, const std::string& key,
                                             const std::string& device) {
  dmu_channel* raw = nullptr;
  dmu_error error{};
  int result = dmu_channel_open(key.c_str(), &raw, &error);
  if (result < 0) throw Error(-result, error.text);
  return std::make_unique<KernelChannel>(std::move(executor), ChannelHandle(raw), device);
}

}  // namespace cowd
