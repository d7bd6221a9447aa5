// SPDX-License-Identifier: GPL-2.0-or-later
// cowd's link to libxenstore and libxenctrl.
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

extern "C" {
#include <xenstore.h>  // no C++ of itself
}

#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/daemon/xen_host.hh"
#include "cowd/xen/domains.h"

namespace cowd {
namespace {

// What one hypercall asks for at a time.
constexpr unsigned kBatch = 256;

std::string uuid_text(const uint8_t (&handle)[16]) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (unsigned i = 0; i < sizeof handle; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += digits[handle[i] >> 4];
    text += digits[handle[i] & 15];
  }
  return text;
}

XenDomain domain_of(const cowd_domain& from) {
  XenDomain domain;
  domain.id = from.id;
  domain.uuid = uuid_text(from.uuid);
  domain.dying = from.dying;
  domain.shut_down = from.shut_down;
  domain.reason = from.reason;
  domain.has_run = from.has_run;
  return domain;
}

class Host : public XenHost {
 public:
  Host() : store_(xs_open(0)), control_(cowd_control_open()) {
    int code = errno;
    if (store_ && control_) return;
    close();
    throw Error(code, "Xen's control interfaces cannot be opened: " + errno_text(code) +
                          ". Are xenstored and the privcmd driver there?");
  }
  ~Host() override { close(); }

  std::optional<std::string> read(const std::string& path) override {
    unsigned length = 0;
    void* value = xs_read(store_, XBT_NULL, path.c_str(), &length);
    if (!value) {
      if (errno != ENOENT && errno != EACCES) fail("read", path);
      return std::nullopt;
    }
    std::string text(static_cast<const char*>(value), length);
    free(value);
    return text;
  }

  std::vector<std::string> list(const std::string& path) override {
    unsigned count = 0;
    char** names = xs_directory(store_, XBT_NULL, path.c_str(), &count);
    if (!names) {
      if (errno != ENOENT) fail("list", path);
      return {};
    }
    std::vector<std::string> all(names, names + count);
    free(names);
    return all;
  }

  void watch(const std::string& path) override {
    if (!xs_watch(store_, path.c_str(), "cowd")) fail("watch", path);
  }

  int fd() const override { return xs_fileno(store_); }

  std::vector<std::string> changes() override {
    std::vector<std::string> paths;
    while (char** event = xs_check_watch(store_)) {
      paths.emplace_back(event[XS_WATCH_PATH]);
      free(event);
    }
    if (errno != EAGAIN && errno != EWOULDBLOCK && errno != 0) fail("read the events of", "XenStore");
    return paths;
  }

  std::vector<XenDomain> domains() override {
    std::vector<XenDomain> all;
    std::vector<cowd_domain> batch(kBatch);
    for (uint32_t first = 0;;) {
      int count = cowd_domains(control_, first, batch.data(), kBatch);
      if (count < 0)
        throw Error(-count, "Xen's list of domains cannot be read: " + errno_text(-count) + ".");
      for (int i = 0; i < count; ++i) all.push_back(domain_of(batch[i]));
      if (count < static_cast<int>(kBatch)) return all;
      first = all.back().id + 1;
    }
  }

 private:
  [[noreturn]] static void fail(const char* what, const std::string& path) {
    int code = errno;
    throw Error(code, "xenstored would not " + std::string(what) + " " + path + ": " +
                          errno_text(code) + ".");
  }

  void close() {
    if (store_) xs_close(store_);
    if (control_) cowd_control_close(control_);
  }

  xs_handle* store_;
  cowd_control* control_;
};

std::unique_ptr<XenHost> open() { return std::make_unique<Host>(); }

}  // namespace
}  // namespace cowd

const cowd::XenDescriptor cowd_xen = {.open = cowd::open};
