// SPDX-License-Identifier: GPL-2.0-or-later
// cowctl info SPEC|DEVICE
#include <utility>

#include <iostream>

#include <nlohmann/json.hpp>

#include "cowd/core/run.hh"
#include "cowd/core/units.hh"
#include "cowd/cowctl/commands.hh"
#include "cowd/cowctl/output.hh"
#include "cowd/cowctl/progress.hh"

namespace cowctl {

namespace {

json offline_info(Context& context) {
  OfflineDisk disk = find_disk(context);
  disk.spec.base.reset();  // a description needs the store alone
  open_disk(context, &disk, cowd::BackingUse::look);
  ProgressLine line(context, "reading " + disk.spec.top.text());
  json info = cowd::run_to_end(context.io, disk.format->info(disk.top.disk));
  info["filename"] = disk.spec.top.text();
  if (!info.contains("format")) info["format"] = disk.spec.format;
  return info;
}

// First what qemu-img info prints first, then the rest.
void print_image(const json& info) {
  json rest = info;
  const auto first = [&](const char* key, const char* label) {
    if (!rest.contains(key)) return;
    const json& value = rest[key];
    std::cout << label << ": ";
    if (value.is_number_unsigned())
      std::cout << cowd::format_size(value.get<uint64_t>()) << " (" << value << " bytes)\n";
    else
      std::cout << plain(value) << '\n';
    rest.erase(key);
  };
  first("filename", "image");
  first("format", "file format");
  first("virtual-size", "virtual size");
  first("base", "base");
  print_object(std::cout, rest);
}

}  // namespace

int run_info(Context& context) {
  const json request = {{"cmd", "info"}, {"device", context.options.target}};
  const auto served = ask_if_attached(context, request, "asking cowd");
  const json info = served ? *served : offline_info(context);
  if (context.options.json)
    print_json(std::cout, info);
  else if (served)
    print_object(std::cout, info);
  else
    print_image(info);
  return 0;
}

}  // namespace cowctl
