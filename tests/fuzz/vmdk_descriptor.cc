// SPDX-License-Identifier: GPL-2.0-or-later
// The text of a VMDK.
#include "cowd/core/error.hh"
#include "formats/vmdk/descriptor.hh"
#include "tests/fuzz/fail.hh"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto place = cowd::vmdk::find_cid(text))
    cowd::fuzz::require(
        place->digits <= text.size() && place->offset <= text.size() - place->digits,
        "the CID is beyond the end of the text");
  try {
    cowd::vmdk::parse_descriptor("disk.vmdk", text);
  } catch (const cowd::Error&) {
  }
  return 0;
}
