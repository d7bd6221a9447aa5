// SPDX-License-Identifier: GPL-2.0-or-later
// TLS towards an NBD server: GnuTLS shakes hands and carries the negotiation; what follows
// is encrypted by the kernel, which gets the keys (kTLS, Documentation/networking/tls.rst),
// so that its nbd driver goes on over the same socket and no data comes by here.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

namespace cowd::nbd {

// Paths of PEM files, and who the server has to be.
struct TlsSettings {
  std::string ca;           // empty: those that the system trusts
  std::string certificate;  // of this host, with `key`, or empty
  std::string key;
  std::string server_name;  // empty: the host that is connected to
  bool wanted = false;
};

class Tls {
 public:
  // Shakes hands over a connected, non-blocking `fd`, which stays the caller's. `where` begins
  // each sentence; `wait(POLLIN or POLLOUT)` returns when that may have come, or throws.
  // Throws Error: EPERM (certificates, keys that others can read), EPROTO, ENOENT.
  Tls(int fd, const TlsSettings& settings, const std::string& host, std::string where,
      std::function<void(short)> wait);
  ~Tls();
  Tls(const Tls&) = delete;
  Tls& operator=(const Tls&) = delete;

  // Some bytes, at least one; 0 for the end of what the server sends.
  size_t read(void* to, size_t size);
  size_t write(const void* from, size_t size);

  // Nothing but the socket is used from then on. Throws Error: ENOTSUP (no kTLS), EPROTO.
  void hand_over();

 private:
  struct Session;
  const int fd_;
  const std::string where_;
  const std::function<void(short)> wait_;
  const bool known_;  // this host has a certificate
  std::unique_ptr<Session> session_;

  template <typename Call>
  int insist(Call call);
  [[noreturn]] void failed(int error, const char* doing) const;
  template <typename Info>
  void give_keys(int direction, int version, int cipher);
};

}  // namespace cowd::nbd
