// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/nbd/handshake.hh"

#include <endian.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "cowd/core/errno_name.hh"

namespace cowd::nbd {

namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kMagic = 0x4e42444d41474943;        // NBDMAGIC
constexpr uint64_t kOptionMagic = 0x49484156454F5054;  // IHAVEOPT
constexpr uint64_t kReplyMagic = 0x3e889045565a9;
constexpr uint16_t kFixedNewstyle = 1, kNoZeroes = 2;
constexpr uint32_t kStartTls = 5, kGo = 7;
constexpr uint32_t kAck = 1, kInfo = 3;
constexpr uint32_t kError = 1U << 31;
constexpr uint32_t kErrorPolicy = kError + 2, kErrorTls = kError + 5, kErrorUnknown = kError + 6;
constexpr uint16_t kInfoExport = 0, kInfoBlockSize = 3;
constexpr uint32_t kLongestReply = 1 << 16;

// A socket that waits no longer than until a point in time.
class Connection {
 public:
  Connection(const Component& component, Clock::time_point deadline)
      : where_("The NBD server " + component.host + ":" + std::to_string(component.port)),
        host_(component.host),
        deadline_(deadline) {
    connect_to(component);
  }
  ~Connection() {
    if (fd_ >= 0) close(fd_);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void start_tls(const TlsSettings& settings) {
    tls_ = std::make_unique<Tls>(fd_, settings, host_, where_, [this](short e) { wait(e); });
  }

  // Gives up the descriptor, blocking again as the kernel wants it.
  int release() {
    if (tls_) tls_->hand_over();
    fcntl(fd_, F_SETFL, fcntl(fd_, F_GETFL) & ~O_NONBLOCK);
    return std::exchange(fd_, -1);
  }

  template <typename T>
  T get() {
    T value;
    read(&value, sizeof value);
    if constexpr (sizeof(T) == 8) return be64toh(value);
    if constexpr (sizeof(T) == 4) return be32toh(value);
    return be16toh(value);
  }

  void read(void* to, size_t size) {
    auto* at = static_cast<char*>(to);
    while (size > 0) {
      const ssize_t count =
          tls_ ? static_cast<ssize_t>(tls_->read(at, size)) : recv(fd_, at, size, 0);
      if (count == 0) fail(ECONNRESET, " closed the connection in the middle of the handshake");
      if (count < 0 && !wait_for(POLLIN)) continue;
      at += count;
      size -= static_cast<size_t>(count);
    }
  }

  void write(const std::string& bytes) {
    for (size_t done = 0; done < bytes.size();) {
      const char* at = bytes.data() + done;
      const size_t left = bytes.size() - done;
      const ssize_t count =
          tls_ ? static_cast<ssize_t>(tls_->write(at, left)) : send(fd_, at, left, MSG_NOSIGNAL);
      if (count < 0 && !wait_for(POLLOUT)) continue;
      done += static_cast<size_t>(count);
    }
  }

  [[noreturn]] void fail(int code, const std::string& what) const {
    throw Error(code, where_ + what + ".");
  }

 private:
  // After a call that failed: false when it can be tried again.
  bool wait_for(short events) {
    if (errno == EINTR) return false;
    if (errno != EAGAIN && errno != EINPROGRESS)
      fail(errno, " cannot be talked to: " + errno_text(errno));
    wait(events);
    return false;
  }

  void wait(short events) {
    pollfd polled{fd_, events, 0};
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - Clock::now()).count();
    if (left <= 0 || poll(&polled, 1, static_cast<int>(left)) == 0)
      fail(ETIMEDOUT, " does not answer");
  }

  void connect_to(const Component& component) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_ADDRCONFIG;
    addrinfo* list = nullptr;
    const int code = getaddrinfo(component.host.c_str(), std::to_string(component.port).c_str(),
                                 component.host == "localhost" ? nullptr : &hints, &list);
    if (code != 0)
      fail(EHOSTUNREACH,
           std::string(" is not known: ") + gai_strerror(code) + ". Check the host's name");
    const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(list, freeaddrinfo);
    std::string why;
    int last = EHOSTUNREACH;
    for (const addrinfo* each = list; each; each = each->ai_next) {
      if (each->ai_socktype != SOCK_STREAM) continue;
      try {
        return connect_one(*each);
      } catch (const Error& error) {
        why = error.what();
        last = error.code();
      }
    }
    throw Error(last, why.empty() ? where_ + " has no address." : why);
  }

  void connect_one(const addrinfo& address) {
    if (fd_ >= 0) close(fd_);
    fd_ = socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd_ < 0) fail(errno, " cannot be connected to: " + errno_text(errno));
    const int on = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    // A server that has lost its power is noticed within a minute even when nothing is asked of it.
    const int idle = 30, interval = 10, count = 3;
    setsockopt(fd_, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd_, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd_, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd_, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
    if (connect(fd_, address.ai_addr, address.ai_addrlen) == 0) return;
    wait_for(POLLOUT);
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(fd_, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0)
      fail(error, " cannot be connected to: " + errno_text(error) +
                      "; see whether it runs and this host may reach it");
  }

  const std::string where_;
  const std::string host_;
  const Clock::time_point deadline_;
  int fd_ = -1;
  std::unique_ptr<Tls> tls_;
};

template <typename T>
void put(std::string& bytes, T value) {
  for (size_t i = sizeof(T); i-- > 0;) bytes += static_cast<char>(value >> (8 * i));
}

template <typename T>
T take(const std::string& bytes, size_t at) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); i++)
    value = static_cast<T>(static_cast<uint64_t>(value) << 8 |
                           static_cast<unsigned char>(bytes[at + i]));
  return value;
}

void greet(Connection& connection) {
  if (connection.get<uint64_t>() != kMagic) connection.fail(EPROTO, " does not speak NBD");
  if (connection.get<uint64_t>() != kOptionMagic || !(connection.get<uint16_t>() & kFixedNewstyle))
    connection.fail(EPROTO, " speaks an NBD of before 2013: use a newer server");
  std::string flags;
  put<uint32_t>(flags, kFixedNewstyle | kNoZeroes);
  connection.write(flags);
}

std::string option(uint32_t number, const std::string& data) {
  std::string bytes;
  put(bytes, kOptionMagic);
  put(bytes, number);
  put(bytes, static_cast<uint32_t>(data.size()));
  return bytes + data;
}

struct Reply {
  uint32_t type;
  std::string data;
};

Reply take_reply(Connection& connection, uint32_t asked) {
  if (connection.get<uint64_t>() != kReplyMagic || connection.get<uint32_t>() != asked)
    connection.fail(EPROTO, " answers something else than it was asked");
  const auto type = connection.get<uint32_t>();
  const auto size = connection.get<uint32_t>();
  if (size > kLongestReply) connection.fail(EPROTO, " sends a reply that is too long");
  Reply reply{type, std::string(size, '\0')};
  connection.read(reply.data.data(), size);
  return reply;
}

std::string in_its_words(const std::string& said) {
  return said.empty() ? "" : " (it says: " + said + ")";
}

// Never without, once it is asked for: what a disk holds would go over the wire in the clear.
void start_tls(Connection& connection, const TlsSettings& settings) {
  connection.write(option(kStartTls, ""));
  const Reply reply = take_reply(connection, kStartTls);
  if (reply.type != kAck)
    connection.fail(EPERM, " does not do TLS, which [tls] asks for" + in_its_words(reply.data));
  connection.start_tls(settings);
}

void ask_for(Connection& connection, const std::string& name) {
  std::string data;
  put(data, static_cast<uint32_t>(name.size()));
  data += name;
  put<uint16_t>(data, 1);
  put(data, kInfoBlockSize);
  connection.write(option(kGo, data));
}

[[noreturn]] void refused(const Connection& connection, const std::string& name, uint32_t type,
                          const std::string& said) {
  const std::string reason = in_its_words(said);
  if (type == kErrorUnknown)
    connection.fail(ENOENT, " has no export '" + name + "'" + reason + ". Check the name");
  if (type == kErrorTls)
    connection.fail(EPERM, " wants TLS for the export '" + name + "'" + reason +
                               ": give its disk a file with a table [tls], docs/backings.md");
  if (type == kErrorPolicy)
    connection.fail(EPERM, " does not let this host have the export '" + name + "'" + reason);
  connection.fail(EPROTO, " refuses the export '" + name + "' with the reply " +
                              std::to_string(type & ~kError) + reason);
}

// Takes in what the server tells of the export; true at the end of it.
bool take_info(Connection& connection, const std::string& name, Export& found, bool& sized) {
  const auto [type, data] = take_reply(connection, kGo);
  if (type == kAck) return true;
  if (type & kError) refused(connection, name, type, data);
  if (type != kInfo || data.size() < 2) return false;
  const auto info = take<uint16_t>(data, 0);
  if (info == kInfoExport && data.size() >= 12) {
    found.size = take<uint64_t>(data, 2);
    found.flags = take<uint16_t>(data, 10);
    sized = true;
  }
  if (info == kInfoBlockSize && data.size() >= 14 && take<uint32_t>(data, 2) > 512)
    found.block_size = take<uint32_t>(data, 2);
  return false;
}

}  // namespace

Export open_export(const Component& component, const TlsSettings& tls,
                   std::chrono::milliseconds limit) {
  Connection connection(component, Clock::now() + limit);
  greet(connection);
  if (tls.wanted) start_tls(connection, tls);
  ask_for(connection, component.export_name);
  Export found;
  bool sized = false;
  while (!take_info(connection, component.export_name, found, sized)) {
  }
  if (!sized) connection.fail(EPROTO, " does not tell how large its export is");
  if (found.block_size > 4096 || (found.block_size & (found.block_size - 1)) != 0)
    connection.fail(EPROTO, " wants blocks of " + std::to_string(found.block_size) +
                                " bytes; the kernel has them up to 4096");
  found.fd = connection.release();
  return found;
}

}  // namespace cowd::nbd
