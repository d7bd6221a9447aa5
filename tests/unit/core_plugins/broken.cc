// SPDX-License-Identifier: GPL-2.0-or-later
// Plugins for core_plugin_test, one of each way to be wrong (and one that is right):
// compiled several times with another of these set.
#include <utility>

#include <boost/asio/awaitable.hpp>
#include <nlohmann/json.hpp>

#include "formats/plugin.hh"

namespace {

[[maybe_unused]] cowd::Task<std::unique_ptr<cowd::Image>> open_nothing(cowd::OpenRequest) {
  co_return nullptr;
}

[[maybe_unused]] cowd::Task<nlohmann::json> describe_nothing(std::shared_ptr<cowd::Disk>) {
  co_return nlohmann::json::object();
}

}  // namespace

#if defined(PLUGIN_unresolved)
extern "C" void a_function_that_nobody_has();
extern "C" __attribute__((visibility("default"))) void (*keep)();
void (*keep)() = a_function_that_nobody_has;
#endif

#if !defined(PLUGIN_nosymbol)
#if defined(PLUGIN_wrongname)
#define PLUGIN_NAME "another"
#else
#define STRING_OF(x) #x
#define STRING(x) STRING_OF(x)
#define PLUGIN_NAME STRING(PLUGIN)
#endif

const cowd::FormatDescriptor cowd_format = {
#if defined(PLUGIN_wrongabi)
    .abi = cowd::kPluginAbi + 1,
#endif
#if defined(PLUGIN_wrongsize)
    .size = sizeof(cowd::FormatDescriptor) - 8,
#endif
    .name = PLUGIN_NAME,
    .description = "for a test",
    .create_options = "granule=the granule, e.g. 4k\nmode=a=b\n",
#if !defined(PLUGIN_noopen)
    .open = open_nothing,
#endif
    .info = describe_nothing,
};
#endif
