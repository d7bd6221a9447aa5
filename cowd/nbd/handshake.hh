// SPDX-License-Identifier: GPL-2.0-or-later
// The client's side of the NBD protocol up to transmission, which is the kernel's
// (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md: fixed newstyle, NBD_OPT_GO).
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "cowd/core/spec.hh"
#include "cowd/nbd/tls.hh"

namespace cowd::nbd {

struct Export {
  int fd = -1;  // connected, past the handshake; the caller's to close
  uint64_t size = 0;
  uint16_t flags = 0;         // transmission flags, as the kernel wants them
  uint32_t block_size = 512;  // the least that may be read or written at once
};

// Connects and negotiates within `limit`. Throws Error: ECONNREFUSED, EHOSTUNREACH, ETIMEDOUT,
// ENOENT (no such export), EPROTO, EPERM (TLS is wanted by one side only), and what Tls does.
Export open_export(const Component& component, const TlsSettings& tls,
                   std::chrono::milliseconds limit);

}  // namespace cowd::nbd
