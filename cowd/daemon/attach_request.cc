// SPDX-License-Identifier: GPL-2.0-or-later
// In a file of its own for the fuzzer.
#include "cowd/daemon/attach_request.hh"

#include <limits>
#include <nlohmann/json.hpp>

#include "cowd/core/error.hh"
#include "cowd/daemon/commands.hh"
#include "cowd/daemon/text.hh"

namespace cowd {
namespace {

template <typename T>
std::optional<T> bounded(std::optional<uint64_t> number, uint64_t most, const char* key) {
  if (!number) return std::nullopt;
  if (*number > most)
    throw Error(EINVAL, text("\"", key, "\" of attach may be ", most, " at most."));
  return static_cast<T>(*number);
}

void read_features(const nlohmann::json& object, AttachRequest& request) {
  JsonArguments features(object, "the features of attach");
  if (auto no_daemon = features.string("no_daemon")) {
    if (*no_daemon != "queue" && *no_daemon != "fail")
      throw Error(EINVAL,
                  text("\"no_daemon\" has to be \"queue\" or \"fail\", not \"", *no_daemon, "\"."));
    request.queue_if_no_daemon = *no_daemon == "queue";
  }
  request.no_daemon_seconds =
      bounded<unsigned>(features.number("no_daemon_seconds"), 86400, "no_daemon_seconds");
  request.max_extents = bounded<uint64_t>(features.number("max_extents"),
                                          std::numeric_limits<uint32_t>::max(), "max_extents");
  features.done();
}

}  // namespace

AttachRequest attach_request(JsonArguments& arguments) {
  AttachRequest request;
  request.spec = arguments.need_string("spec");
  request.name = arguments.string("name").value_or("");
  if (auto durability = arguments.string("durability"))
    request.durability = durability_by_name(*durability);
  request.read_only = arguments.flag("read_only", false);
  if (const nlohmann::json* features = arguments.object("features"))
    read_features(*features, request);
  arguments.done();
  return request;
}

}  // namespace cowd
