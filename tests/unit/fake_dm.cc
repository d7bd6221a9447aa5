// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/unit/fake_dm.hh"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>

#include "libdmu/dmu.h"

struct dmu_channel {
  std::string key;
  int fd = -1;
  bool replayed = false;
  dmu_attach attach{};
};

namespace cowd::fake_dm {
namespace {

std::mutex mutex;
std::map<std::string, Device> devices;
std::map<std::string, dmu_channel*> channels;  // by key

// Whoever serves it hears that its target is no more.
void end_channel(const std::string& key) {
  if (auto found = channels.find(key); found != channels.end()) eventfd_write(found->second->fd, 1);
}

bool lives(const std::string& key) {
  for (const auto& [name, device] : devices)
    if (device.key == key && !device.wiped) return true;
  return false;
}

void erase(const std::string& name) {
  const std::string key = devices[name].key;
  devices.erase(name);
  end_channel(key);
}

void fill(const std::string& name, const Device& device, dmu_info* info) {
  const size_t size = info->size;
  *info = {};
  info->size = size;
  info->open_count = device.open_count;
  info->minor = 7;
  std::snprintf(info->name, sizeof info->name, "%s", name.c_str());
  std::snprintf(info->uuid, sizeof info->uuid, "%s", device.uuid.c_str());
  std::snprintf(info->path, sizeof info->path, "/dev/mapper/%s", name.c_str());
}

int fail(int code, dmu_error* error) {
  if (error) std::snprintf(error->text, sizeof error->text, "%s", std::strerror(code));
  return -code;
}

}  // namespace

void clear() {
  const std::lock_guard lock(mutex);
  while (!devices.empty()) erase(devices.begin()->first);
}

bool has(const std::string& name) {
  const std::lock_guard lock(mutex);
  return devices.contains(name);
}

Device look(const std::string& name) {
  const std::lock_guard lock(mutex);
  return devices.at(name);
}

void set_open(const std::string& name, uint32_t count) {
  const std::lock_guard lock(mutex);
  Device& device = devices.at(name);
  device.open_count = count;
  if (!count && device.deferred) erase(name);
}

}  // namespace cowd::fake_dm

using namespace cowd::fake_dm;

int dmu_create(const dmu_spec* spec, dmu_info* info, dmu_error* error) {
  const std::lock_guard lock(mutex);
  if (devices.contains(spec->name)) return fail(EBUSY, error);
  Device device{spec->uuid, spec->key, spec->sectors, {}};
  for (uint32_t i = 0; i < spec->num_dests; ++i) device.dests.emplace_back(spec->dests[i].path);
  devices[spec->name] = device;
  fill(spec->name, device, info);
  return 0;
}

int dmu_suspend(const char* name, uint32_t, dmu_error* error) {
  return has(name) ? 0 : fail(ENXIO, error);
}

int dmu_resume(const char* name, uint32_t, dmu_error* error) {
  return has(name) ? 0 : fail(ENXIO, error);
}

int dmu_remove(const char* name, uint32_t flags, dmu_error* error) {
  const std::lock_guard lock(mutex);
  auto found = devices.find(name);
  if (found == devices.end()) return fail(ENXIO, error);
  if (found->second.open_count && !(flags & DMU_DEFERRED)) return fail(EBUSY, error);
  if (found->second.open_count)
    found->second.deferred = true;
  else
    erase(name);
  return 0;
}

int dmu_wipe(const char* name, uint32_t, dmu_error* error) {
  const std::lock_guard lock(mutex);
  auto found = devices.find(name);
  if (found == devices.end()) return fail(ENXIO, error);
  found->second.wiped = true;
  end_channel(found->second.key);
  return 0;
}

int dmu_get_info(const char* name, dmu_info* info, dmu_error* error) {
  const std::lock_guard lock(mutex);
  auto found = devices.find(name);
  if (found == devices.end()) return fail(ENXIO, error);
  fill(name, found->second, info);
  return 0;
}

int dmu_get_table(const char* name, dmu_table* table, dmu_error* error) {
  const std::lock_guard lock(mutex);
  auto found = devices.find(name);
  if (found == devices.end() || found->second.wiped) return fail(ENXIO, error);
  table->sectors = found->second.sectors;
  std::snprintf(table->key, sizeof table->key, "%s", found->second.key.c_str());
  table->num_dests = static_cast<uint32_t>(found->second.dests.size());
  for (uint32_t i = 0; i < table->num_dests; ++i)
    std::snprintf(table->dests[i].path, sizeof table->dests[i].path, "%s",
                  found->second.dests[i].c_str());
  return 0;
}

int dmu_get_status(const char* name, dmu_status* status, dmu_error* error) {
  const std::lock_guard lock(mutex);
  auto found = devices.find(name);
  if (found == devices.end() || found->second.wiped) return fail(ENXIO, error);
  status->state = channels.contains(found->second.key) ? DMU_STATE_ACTIVE : DMU_STATE_NO_DAEMON;
  return 0;
}

int dmu_list(dmu_list_fn tell, void* context, dmu_error*) {
  const std::lock_guard lock(mutex);
  for (const auto& [name, device] : devices) {
    dmu_info info{};
    info.size = sizeof info;
    fill(name, device, &info);
    tell(&info, context);
  }
  return 0;
}

int dmu_channel_open(const char* key, dmu_channel** channel, dmu_error* error) {
  const std::lock_guard lock(mutex);
  if (!lives(key)) return fail(ENODEV, error);
  if (channels.contains(key)) return fail(EBUSY, error);
  *channel = new dmu_channel;
  (*channel)->key = key;
  (*channel)->fd = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
  (*channel)->attach.gen = 1;
  channels[key] = *channel;
  return 0;
}

void dmu_channel_close(dmu_channel* channel) {
  if (!channel) return;
  const std::lock_guard lock(mutex);
  channels.erase(channel->key);
  close(channel->fd);
  delete channel;
}

int dmu_channel_fd(const dmu_channel* channel) { return channel->fd; }

const dmu_attach* dmu_channel_attach(const dmu_channel* channel) { return &channel->attach; }

ssize_t dmu_channel_receive(dmu_channel* channel, dmu_msg* messages, size_t) {
  const std::lock_guard lock(mutex);
  if (!lives(channel->key)) return -ENODEV;
  eventfd_t count = 0;
  eventfd_read(channel->fd, &count);
  if (channel->replayed) return -EAGAIN;
  channel->replayed = true;
  messages[0] = dmu_msg_make(DMU_MSG_REPLAY_DONE, 0);
  return 1;
}

ssize_t dmu_channel_send(dmu_channel* channel, const dmu_msg*, size_t count, int* results) {
  const std::lock_guard lock(mutex);
  if (!lives(channel->key)) return -ENODEV;
  for (size_t i = 0; results && i < count; ++i) results[i] = 0;
  return static_cast<ssize_t>(count);
}
