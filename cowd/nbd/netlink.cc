// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/nbd/netlink.hh"

#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/nbd.h>
#include <linux/netlink.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
#include <string_view>

#include "cowd/core/backing_mark.hh"
#include "cowd/core/child.hh"
#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"

namespace cowd::nbd {

namespace {

using Clock = std::chrono::steady_clock;

std::string attribute(uint16_t type, const void* data, size_t size) {
  nlattr header{static_cast<uint16_t>(NLA_HDRLEN + size), type};
  std::string bytes(reinterpret_cast<const char*>(&header), sizeof header);
  bytes.append(static_cast<const char*>(data), size);
  bytes.resize(NLA_ALIGN(bytes.size()));
  return bytes;
}

template <typename T>
std::string number(uint16_t type, T value) {
  return attribute(type, &value, sizeof value);
}

std::string text(uint16_t type, const std::string& value) {
  return attribute(type, value.c_str(), value.size() + 1);
}

std::string nested(uint16_t type, const std::string& inner) {
  return attribute(type | NLA_F_NESTED, inner.data(), inner.size());
}

std::string socket_list(int fd) {
  return nested(NBD_ATTR_SOCKETS,
                nested(NBD_SOCK_ITEM, number(NBD_SOCK_FD, static_cast<uint32_t>(fd))));
}

void each_attribute(std::string_view bytes,
                    const std::function<void(uint16_t, std::string_view)>& visit) {
  while (bytes.size() >= NLA_HDRLEN) {
    nlattr header;
    std::memcpy(&header, bytes.data(), sizeof header);
    if (header.nla_len < NLA_HDRLEN || header.nla_len > bytes.size()) return;
    visit(header.nla_type & NLA_TYPE_MASK, bytes.substr(NLA_HDRLEN, header.nla_len - NLA_HDRLEN));
    bytes.remove_prefix(std::min<size_t>(bytes.size(), NLA_ALIGN(header.nla_len)));
  }
}

template <typename T>
T value_of(std::string_view bytes) {
  T value = 0;
  std::memcpy(&value, bytes.data(), std::min(bytes.size(), sizeof value));
  return value;
}

int open_socket() {
  const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
  sockaddr_nl any{};
  any.nl_family = AF_NETLINK;
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&any), sizeof any) < 0)
    throw system_error(errno, "Talking to the kernel's nbd driver failed");
  return fd;
}

// Of these there is a minor number for the disk and its partitions.
constexpr uint32_t kMostDevices = 4096;

std::string in_sysfs(uint32_t index) { return "/sys/block/nbd" + std::to_string(index); }

bool exists(uint32_t index) { return access(in_sysfs(index).c_str(), F_OK) == 0; }

bool is_connected(uint32_t index) { return access((in_sysfs(index) + "/pid").c_str(), F_OK) == 0; }

// What follows the generic header, and the command in it.
std::string_view body_of(const nlmsghdr& message, uint8_t* command = nullptr) {
  const auto* begin = reinterpret_cast<const char*>(&message) + NLMSG_HDRLEN;
  const size_t size = message.nlmsg_len - NLMSG_HDRLEN;
  if (size < GENL_HDRLEN) return {};
  if (command) *command = reinterpret_cast<const genlmsghdr*>(begin)->cmd;
  return {begin + GENL_HDRLEN, size - GENL_HDRLEN};
}

}  // namespace

Netlink::Netlink() : requests_(open_socket()), events_(open_socket()) {
  if (!find_family()) {
    run_tool("Loading the kernel's nbd driver failed", {"modprobe", "nbd"});
    if (!find_family())
      throw Error(ENODEV,
                  "This kernel's nbd driver has no netlink interface; Linux has it since 4.11.");
  }
  setsockopt(events_, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group_, sizeof group_);
}

Netlink::~Netlink() {
  close(requests_);
  close(events_);
}

// Sends one request and gives the attributes of the answer to it, if it has one.
std::string Netlink::ask(uint8_t command, uint16_t family, const std::string& attributes,
                         const std::string& purpose) {
  nlmsghdr header{};
  header.nlmsg_len = static_cast<uint32_t>(NLMSG_HDRLEN + GENL_HDRLEN + attributes.size());
  header.nlmsg_type = family;
  header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  header.nlmsg_seq = ++sequence_;
  genlmsghdr generic{command, 1, 0};
  std::string bytes(reinterpret_cast<const char*>(&header), sizeof header);
  bytes.append(reinterpret_cast<const char*>(&generic), sizeof generic);
  bytes += attributes;
  if (send(requests_, bytes.data(), bytes.size(), 0) < 0) throw system_error(errno, purpose);
  std::string answer;
  alignas(nlmsghdr) std::array<char, 16384> buffer;
  for (;;) {
    const ssize_t count = recv(requests_, buffer.data(), buffer.size(), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw system_error(errno, purpose);
    auto left = static_cast<uint32_t>(count);
    for (auto* message = reinterpret_cast<nlmsghdr*>(buffer.data()); NLMSG_OK(message, left);
         message = NLMSG_NEXT(message, left)) {
      if (message->nlmsg_seq != sequence_) continue;
      if (message->nlmsg_type != NLMSG_ERROR) {
        answer = body_of(*message);
        continue;
      }
      const int error = static_cast<nlmsgerr*>(NLMSG_DATA(message))->error;
      if (error != 0) throw Error(-error, purpose + ": " + errno_text(-error) + ".");
      return answer;
    }
  }
}

bool Netlink::find_family() {
  std::string answer;
  try {
    answer =
        ask(CTRL_CMD_GETFAMILY, GENL_ID_CTRL, text(CTRL_ATTR_FAMILY_NAME, NBD_GENL_FAMILY_NAME),
            "Looking for the nbd driver failed");
  } catch (const Error& error) {
    if (error.code() == ENOENT) return false;
    throw;
  }
  each_attribute(answer, [&](uint16_t type, std::string_view value) {
    if (type == CTRL_ATTR_FAMILY_ID) family_ = value_of<uint16_t>(value);
    if (type != CTRL_ATTR_MCAST_GROUPS) return;
    each_attribute(value, [&](uint16_t, std::string_view group) {
      each_attribute(group, [&](uint16_t kind, std::string_view id) {
        if (kind == CTRL_ATTR_MCAST_GRP_ID) group_ = value_of<uint32_t>(id);
      });
    });
  });
  return family_ != 0;
}

// Whether that device is ours now; false: it is somebody else's, or about to be or to go.
bool Netlink::connect_as(uint32_t index, const std::string& attributes) {
  BackingMark mark("nbd" + std::to_string(index));
  if (is_connected(index)) return false;
  mark.set();
  try {
    ask(NBD_CMD_CONNECT, family_, number(NBD_ATTR_INDEX, index) + attributes,
        "Giving the connection to the kernel failed");
  } catch (const Error& error) {
    // A device that there is may be open, or be taken away; a new one has no reason to fail so.
    if (error.code() == EBUSY || error.code() == EEXIST) return false;
    if (error.code() == EINVAL && exists(index)) return false;
    throw;
  }
  return true;
}

// The kernel announces a device before it says whose it is, so that the number must not be left to
// the kernel: the mark has to be there first.
uint32_t Netlink::connect(const Export& from, const Timeouts& timeouts,
                          const std::string& backend) {
  std::string attributes = number<uint64_t>(NBD_ATTR_SIZE_BYTES, from.size);
  attributes += number<uint64_t>(NBD_ATTR_BLOCK_SIZE_BYTES, from.block_size);
  attributes += number<uint64_t>(NBD_ATTR_SERVER_FLAGS, from.flags);
  attributes += number<uint64_t>(NBD_ATTR_TIMEOUT, timeouts.request);
  attributes += number<uint64_t>(NBD_ATTR_DEAD_CONN_TIMEOUT, timeouts.dead);
  attributes += text(NBD_ATTR_BACKEND_IDENTIFIER, backend);
  attributes += socket_list(from.fd);
  for (uint32_t index = 0; index < kMostDevices; index++)
    if (!is_connected(index) && connect_as(index, attributes)) return index;
  throw Error(EBUSY, "All " + std::to_string(kMostDevices) +
                         " devices of the kernel's nbd driver are in use.");
}

void Netlink::reconnect(uint32_t index, int fd, const std::string& backend) {
  ask(NBD_CMD_RECONFIGURE, family_,
      number(NBD_ATTR_INDEX, index) + text(NBD_ATTR_BACKEND_IDENTIFIER, backend) + socket_list(fd),
      "Giving the kernel a new connection for nbd" + std::to_string(index) + " failed");
}

void Netlink::disconnect_on_close(uint32_t index, const std::string& backend) {
  ask(NBD_CMD_RECONFIGURE, family_,
      number(NBD_ATTR_INDEX, index) + text(NBD_ATTR_BACKEND_IDENTIFIER, backend) +
          number<uint64_t>(NBD_ATTR_CLIENT_FLAGS, NBD_CFLAG_DISCONNECT_ON_CLOSE),
      "Telling the kernel when to disconnect nbd" + std::to_string(index) + " failed");
}

void Netlink::disconnect(uint32_t index) {
  ask(NBD_CMD_DISCONNECT, family_, number(NBD_ATTR_INDEX, index),
      "Disconnecting nbd" + std::to_string(index) + " failed");
}

bool Netlink::link_died(uint32_t index, std::chrono::milliseconds limit) {
  const auto deadline = Clock::now() + limit;
  alignas(nlmsghdr) std::array<char, 16384> buffer;
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd polled{events_, POLLIN, 0};
    if (left < 0 || poll(&polled, 1, static_cast<int>(left)) <= 0) return false;
    const ssize_t count = recv(events_, buffer.data(), buffer.size(), 0);
    if (count < 0) continue;
    auto size = static_cast<uint32_t>(count);
    for (auto* message = reinterpret_cast<nlmsghdr*>(buffer.data()); NLMSG_OK(message, size);
         message = NLMSG_NEXT(message, size)) {
      uint8_t command = 0;
      const std::string_view body = body_of(*message, &command);
      bool it = false;
      each_attribute(body, [&](uint16_t type, std::string_view value) {
        it |= type == NBD_ATTR_INDEX && value_of<uint32_t>(value) == index;
      });
      if (command == NBD_CMD_LINK_DEAD && it) return true;
    }
  }
}

}  // namespace cowd::nbd
