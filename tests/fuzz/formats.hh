// SPDX-License-Identifier: GPL-2.0-or-later
// The descriptors of all plugins, linked into one program: each plugin.cc is compiled with
// another name for cowd_format (module.mk).
#pragma once

#include <string_view>

#include "formats/plugin.hh"

extern "C" {
extern const cowd::FormatDescriptor raw_format;
extern const cowd::FormatDescriptor dscow_format;
extern const cowd::FormatDescriptor qcow_format;
extern const cowd::FormatDescriptor qcow2_format;
extern const cowd::FormatDescriptor vhd_format;
extern const cowd::FormatDescriptor vmdk_format;
}

namespace cowd::fuzz {

// Null if there is none.
inline const FormatDescriptor* format_by_name(std::string_view name) {
  for (const FormatDescriptor* each :
       {&raw_format, &dscow_format, &qcow_format, &qcow2_format, &vhd_format, &vmdk_format})
    if (name == each->name) return each;
  return nullptr;
}

}  // namespace cowd::fuzz
