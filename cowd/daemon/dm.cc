// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/dm.hh"

#include <sys/sysmacros.h>

#include <cerrno>
#include <memory>
#include <nlohmann/json.hpp>

#include "cowd/core/error.hh"
#include "cowd/daemon/text.hh"
#include "libdmu/dmu.h"

namespace cowd::dm {

namespace {

// Calls f(..., &error) of libdmu.
template <typename Call>
void must(Call call) {
  dmu_error error{};
  int result = call(&error);
  if (result < 0)
    throw Error(-result, error.text[0] ? error.text : "The kernel refused a dm request.");
}

Info from(const dmu_info& raw) {
  return {raw.name,
          raw.uuid,
          raw.path,
          text(raw.major, ":", raw.minor),
          raw.open_count,
          (raw.flags & DMU_INFO_SUSPENDED) != 0,
          (raw.flags & DMU_INFO_READ_ONLY) != 0};
}

dmu_info sized_info() {
  dmu_info raw{};
  raw.size = sizeof raw;
  return raw;
}

}  // namespace

Info create(const NewDevice& device) {
  std::vector<dmu_dest> dests;
  for (const Dest& dest : device.dests)
    dests.push_back({dest.dev.c_str(), dest.writable ? 0 : DMU_READ_ONLY, 0});
  dmu_spec spec{};
  spec.size = sizeof spec;
  spec.name = device.name.c_str();
  spec.uuid = device.uuid.c_str();
  spec.key = device.key.c_str();
  spec.sectors = device.sectors;
  spec.dests = dests.data();
  spec.num_dests = static_cast<uint32_t>(dests.size());
  spec.flags = DMU_NO_UDEV_SCAN | (device.read_only ? DMU_READ_ONLY : 0);
  spec.no_daemon = device.queue_if_no_daemon ? DMU_NO_DAEMON_QUEUE : DMU_NO_DAEMON_FAIL;
  spec.no_daemon_secs = device.queue_if_no_daemon ? 0 : device.no_daemon_seconds;
  spec.max_extents = device.max_extents;
  spec.discard_granularity = device.discard_granularity;
  dmu_info raw = sized_info();
  must([&](dmu_error* error) { return dmu_create(&spec, &raw, error); });
  return from(raw);
}

void suspend(const std::string& name) {
  must([&](dmu_error* error) {
    return dmu_suspend(name.c_str(), DMU_NOFLUSH | DMU_SKIP_LOCKFS, error);
  });
}

void resume(const std::string& name) {
  must([&](dmu_error* error) { return dmu_resume(name.c_str(), DMU_NO_UDEV_SCAN, error); });
}

void remove(const std::string& name) {
  must([&](dmu_error* error) { return dmu_remove(name.c_str(), DMU_NO_UDEV_SCAN, error); });
}

void remove_deferred(const std::string& name) {
  dmu_error error{};
  int result = dmu_remove(name.c_str(), DMU_NO_UDEV_SCAN | DMU_DEFERRED, &error);
  if (result < 0 && result != -ENXIO) throw Error(-result, error.text);
}

void wipe(const std::string& name) {
  dmu_error error{};
  int result = dmu_wipe(name.c_str(), DMU_NO_UDEV_SCAN, &error);
  if (result < 0 && result != -ENXIO) throw Error(-result, error.text);
}

std::optional<Info> find(const std::string& name) {
  dmu_info raw = sized_info();
  dmu_error error{};
  int result = dmu_get_info(name.c_str(), &raw, &error);
  if (result == -ENXIO) return std::nullopt;
  if (result < 0) throw Error(-result, error.text);
  return from(raw);
}

Info info(const std::string& name) {
  auto found = find(name);
  if (!found) throw Error(ENXIO, text("The device ", name, " is not there any more."));
  return *found;
}

Table table(const std::string& name) {
  auto raw = std::make_unique<dmu_table>();
  raw->size = sizeof *raw;
  must([&](dmu_error* error) { return dmu_get_table(name.c_str(), raw.get(), error); });
  Table table{raw->sectors, raw->key, {}};
  for (uint32_t i = 0; i < raw->num_dests; ++i)
    table.dests.push_back({raw->dests[i].path, !(raw->dests[i].flags & DMU_READ_ONLY)});
  return table;
}

nlohmann::json status(const std::string& name) {
  dmu_status raw{};
  raw.size = sizeof raw;
  must([&](dmu_error* error) { return dmu_get_status(name.c_str(), &raw, error); });
  return {{"state", dmu_state_name(raw.state)},
          {"extents", raw.extents},
          {"max_extents", raw.max_extents},
          {"leaves", raw.leaves},
          {"faults_outstanding", raw.faults_outstanding},
          {"bios_parked", raw.bios_parked},
          {"uncommitted", raw.uncommitted},
          {"generation", raw.gen},
          {"faults", raw.faults},
          {"reads_parked", raw.reads_parked},
          {"writes_parked", raw.writes_parked},
          {"promotions", raw.promotions},
          {"copies", raw.copies},
          {"copied_sectors", raw.copied_sectors},
          {"flushes", raw.flushes},
          {"daemon_flushes", raw.daemon_flushes},
          {"evictions", raw.evictions},
          {"invalidations", raw.invalidations},
          {"discards", raw.discards},
          {"pushed", raw.pushed},
          {"errors", raw.errors}};
}

std::vector<Info> list() {
  std::vector<Info> found;
  auto add = [](const dmu_info* raw, void* context) {
    static_cast<std::vector<Info>*>(context)->push_back(from(*raw));
    return 0;
  };
  must([&](dmu_error* error) { return dmu_list(add, &found, error); });
  return found;
}

std::string dev_text(uint64_t dev) { return text(major(dev), ":", minor(dev)); }

}  // namespace cowd::dm
