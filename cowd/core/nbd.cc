// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/nbd.hh"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "cowd/core/backing.hh"
#include "cowd/core/block_name.hh"
#include "cowd/core/child.hh"
#include "cowd/core/disk_options.hh"
#include "cowd/core/errno_name.hh"
#include "cowd/core/helper.hh"

namespace cowd {

namespace fs = std::filesystem;

namespace {

// With "wait": longer than anybody waits.
constexpr uint64_t kForEver = 5ULL * 365 * 86400;
constexpr unsigned kRequestTimeout = 30;

constexpr const char* kOurs = "cowd ";

std::string backend_of(const Component& component) { return kOurs + component.text(); }

std::string backend_in_kernel(const fs::path& device) {
  std::ifstream in(device / "backend");
  std::string line;
  std::getline(in, line);
  return line;
}

// Two disks that come at one time must not connect two devices; nor wait for one another
// where they are of different servers.
std::shared_ptr<std::mutex> lock_of(const std::string& backend) {
  static std::mutex mutex;
  static std::map<std::string, std::weak_ptr<std::mutex>> locks;
  const std::lock_guard guard(mutex);
  std::erase_if(locks, [](const auto& each) { return each.second.expired(); });
  auto lock = locks[backend].lock();
  if (!lock) locks[backend] = lock = std::make_shared<std::mutex>();
  return lock;
}

void add_tls(const DiskOptions::Tls& tls, std::vector<std::string>& command) {
  command.insert(command.end(), {"--tls", "required"});
  const std::pair<const char*, const std::string&> options[] = {
      {"--tls-ca", tls.ca},
      {"--tls-certificate", tls.certificate},
      {"--tls-key", tls.key},
      {"--tls-name", tls.server_name}};
  for (const auto& [name, value] : options)
    if (!value.empty()) command.insert(command.end(), {name, value});
}

}  // namespace

std::shared_ptr<NbdDevice> NbdDevice::find(const Component& component) {
  const std::string backend = backend_of(component);
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/sys/block", ignored)) {
    const std::string name = entry.path().filename();
    if (!name.starts_with("nbd") || backend_in_kernel(entry.path()) != backend) continue;
    const std::string path = "/dev/" + name;
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    // While it was not open yet it may have been disconnected.
    if (backend_in_kernel(entry.path()) == backend)
      return std::shared_ptr<NbdDevice>(new NbdDevice(fd, path));
    close(fd);
  }
  return nullptr;
}

std::shared_ptr<NbdDevice> NbdDevice::attach(const Component& component,
                                             const BackingSettings& settings,
                                             const DiskOptions& options) {
  const std::string backend = backend_of(component);
  const auto lock = lock_of(backend);
  const std::lock_guard guard(*lock);
  if (auto device = find(component)) return device;
  const HoldFile hold(settings.run_dir);
  const uint64_t dead = settings.loss_seconds.value_or(kForEver);
  std::vector<std::string> command = {helper_path("cowd-nbd"),
                                      "--backend",
                                      backend,
                                      "--hold",
                                      hold.path(),
                                      "--request-timeout",
                                      std::to_string(kRequestTimeout),
                                      "--dead-timeout",
                                      std::to_string(dead)};
  if (options.tls) add_tls(*options.tls, command);
  command.push_back(component.text());
  start_helper(command, hold, component.text() + " cannot be attached");
  if (auto device = find(component)) return device;
  throw Error(ENODEV, component.text() +
                          " was connected, and disconnected at once by somebody else; try again.");
}

std::string NbdDevice::export_of(dev_t device) {
  const std::string name = block_name(device);
  const std::string backend =
      name.starts_with("nbd") ? backend_in_kernel(fs::path("/sys/block") / name) : std::string();
  return backend.starts_with(kOurs) ? backend.substr(std::string(kOurs).size()) : std::string();
}

std::vector<std::string> NbdDevice::own_devices() {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/sys/block", ignored))
    if (const std::string name = entry.path().filename();
        name.starts_with("nbd") && backend_in_kernel(entry.path()).starts_with(kOurs))
      names.push_back(name);
  return names;
}

NbdDevice::~NbdDevice() { close(fd_); }

}  // namespace cowd
