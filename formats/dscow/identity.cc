// SPDX-License-Identifier: GPL-2.0-or-later
#include "formats/dscow/identity.hh"

#include <algorithm>
#include <span>

#include "cowd/core/error.hh"
#include "formats/common/bytes.hh"
#include "formats/common/crc32c.hh"

namespace cowd::dscow {
namespace {

std::string describe(const Uuid& uuid) {
  return uuid == Uuid{} ? "nothing with a UUID" : "UUID " + to_string(uuid);
}

[[noreturn]] void refuse_other(const std::string& store, const Header& header, const Disk& base,
                               const BaseIdentity& found) {
  std::string what;
  if (found.uuid != header.base.uuid)
    what = "it holds " + describe(found.uuid) + " where " + describe(header.base.uuid) +
           " is expected";
  for (size_t i = 0; what.empty() && i < kSamples; i++)
    if (found.samples[i] != header.base.samples[i])
      what = "its content at byte " + std::to_string(sample_offset(header.base.size, i)) +
             " is another";
  throw Error(ESTALE, base.name() + " is not the base that " + store +
                          " was made for, or has been changed since: " + what + ". The base was '" +
                          header.base_locator +
                          "': give that one, unchanged, or make a new store for this one.");
}

}  // namespace

uint64_t sample_offset(uint64_t size, size_t i) {
  const uint64_t last = size > kBlock ? size - kBlock : 0;
  if (i == 0) return 0;
  if (i == 1) return std::min<uint64_t>(1 << 20, round_down(last, kBlock));
  // Divided first: size * i could overflow.
  const uint64_t steps = kSamples - 1;
  return round_down(last / steps * i + last % steps * i / steps, kBlock);
}

Task<BaseIdentity> identify(Disk& base, uint64_t size) {
  BaseIdentity identity;
  identity.size = size;
  Buffer block(kBlock);
  for (size_t i = 0; i < kSamples; i++) {
    const uint64_t offset = sample_offset(size, i);
    const uint64_t room = std::min<uint64_t>(kBlock, base.size() - offset);
    const std::span<std::byte> bytes = std::span<std::byte>(block).first(room);
    co_await base.read_at(offset, bytes);
    identity.samples[i] = crc32c(bytes.first(std::min<uint64_t>(room, size - offset)));
  }
  Buffer head(std::min<uint64_t>(kSignatureSpan, base.size()));
  co_await base.read_at(0, head);
  identity.uuid =
      find_uuid(std::span<const std::byte>(head).first(std::min<uint64_t>(head.size(), size)));
  co_return identity;
}

Task<> require_base(const std::string& store, const Header& header, Disk* base) {
  if (header.base.size == 0) {
    if (base)
      throw Error(EINVAL, store + " was made without a base, and " + base->name() +
                              " is given as one: leave it out of the specification.");
    co_return;
  }
  if (!base)
    throw Error(EINVAL, store + " needs its base '" + header.base_locator +
                            "', and none is given: write dscow:TOP:BASE.");
  if (base->size() < header.base.size)
    throw Error(ESTALE, base->name() + " is too small to be the base of " + store + ": it has " +
                            std::to_string(base->size()) + " bytes, the base '" +
                            header.base_locator + "' had " + std::to_string(header.base.size) +
                            ". Give that one, or make it as large as it was.");
  if (header.compatible & kBaseChanges) co_return;
  const BaseIdentity found = co_await identify(*base, header.base.size);
  if (found != header.base) refuse_other(store, header, *base, found);
}

}  // namespace cowd::dscow
