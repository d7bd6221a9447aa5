// SPDX-License-Identifier: GPL-2.0-or-later
#include "tests/kernel/garbage.hh"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tests/kernel/case.hh"

namespace dmutest {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kOpen = 512;  // questions that are remembered, at most
constexpr size_t kPast = 64;
constexpr uint32_t kMapFlags[] = {DMU_F_SYNC, DMU_F_VOLATILE, DMU_F_TEMPORARY, DMU_F_UNCOMMITTED};

}  // namespace

Payload::Payload() {
  void* at = mmap(nullptr, DMU_DATA_MAX + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) FAIL("no memory for payloads");
  at_ = static_cast<uint8_t*>(at);
  mprotect(end(), kPage, PROT_NONE);
  for (size_t i = 0; i < kPage; i++) at_[i] = static_cast<uint8_t>(i * 37);
}

Payload::~Payload() { munmap(at_, DMU_DATA_MAX + kPage); }

uint64_t Payload::wrong(Random& random) const {
  auto last = reinterpret_cast<uintptr_t>(end());
  return random.of<uint64_t>({0, 1, last, last - 512, last - 1, ~0ULL, ~0ULL << 12, 0xffff888000000000ULL, 1ULL << 47, 1ULL << 63});
}

Garbage::Garbage(uint64_t seed, uint64_t sectors, uint64_t dest_sectors)
    : random_(seed), sectors_(sectors), dest_sectors_(dest_sectors) {}

void Garbage::heard(const dmu_msg& msg) {
  switch (msg.type) {
    case DMU_MSG_PROMOTED:
      seq_ = std::max<uint64_t>(seq_, msg.seq);
      return;
    case DMU_MSG_FAULT:
    case DMU_MSG_INVALIDATED:
    case DMU_MSG_REPLAY_DONE:
      gen_ = msg.gen;
      break;
    default:
      break;
  }
  if (msg.id && msg.type != DMU_MSG_INVALIDATED) open_[msg.id] = msg;
  if (open_.size() > kOpen) open_.erase(open_.begin());
}

void Garbage::told(const dmu_msg& msg, int error) {
  // A wrong answer is one, too; what is no answer leaves the question open.
  bool answers = msg.type >= DMU_MSG_MAP && msg.type <= DMU_MSG_RETRY && msg.type != DMU_MSG_COMMITTED && msg.type != DMU_MSG_INVALIDATE;
  if (answers && error != -ENOMEM) open_.erase(msg.id);
  if (!error && msg.type == DMU_MSG_MAP && (msg.flags & DMU_F_OVERLAY)) {
    if (overlays_.size() >= 8) overlays_.erase(overlays_.begin());
    overlays_.push_back(msg);
  }
}

std::vector<dmu_msg> Garbage::mercy() {
  std::vector<dmu_msg> all;
  if (seq_) all.push_back(dmu_msg_committed(seq_));
  for (const auto& [id, question] : open_) all.push_back(dmu_msg_fail(id, 0));
  return all;
}

// A number that somebody might have forgotten.
uint64_t Garbage::number() {
  switch (random_.below(4)) {
    case 0: return random_.of<uint64_t>({0, 1, 7, 8, 63, 64, DMU_DEST_ZERO, DMU_DEST_NONE, 1ULL << 31, 1ULL << 32, 1ULL << 63, ~0ULL});
    case 1: return random_.of({sectors_, dest_sectors_}) + random_.below(5) - 2;
    case 2: return random_.below(sectors_);
    default: return random_.any() >> random_.below(64);
  }
}

dmu_msg Garbage::map(uint64_t id, uint64_t sector, uint64_t len, bool write) {
  // Around what was asked, or all there is.
  uint64_t before = std::min(sector, random_.one_in(3) ? random_.below(256) : 0);
  uint64_t room = sectors_ > sector ? sectors_ - sector : 1;
  uint64_t end = sector + std::min(room, random_.one_in(3) ? len + random_.below(256) : std::max<uint64_t>(1, random_.one_in(4) ? len / 2 : len));
  uint64_t start = sector - before;
  if (random_.one_in(12)) start = 0, end = sectors_;
  dmu_msg msg = dmu_msg_map(id, start, end - start);
  if (random_.one_in(3)) msg.flags |= kMapFlags[random_.below(4)];
  if (random_.one_in(8)) msg.flags |= kMapFlags[random_.below(4)];

  auto place = [&] { return random_.one_in(2) ? start : random_.below(dest_sectors_ - std::min<uint64_t>(dest_sectors_ - 1, msg.len)); };
  bool reads = !write || random_.below(4);
  if (reads && random_.one_in(6))
    dmu_map_read(&msg, DMU_DEST_ZERO, 0);
  else if (reads)
    dmu_map_read(&msg, static_cast<uint32_t>(random_.below(2)), place());
  if (write || random_.below(3)) dmu_map_write(&msg, 1, place());
  if (msg.write_dest != DMU_DEST_NONE && msg.read_dest != DMU_DEST_NONE) {
    if (random_.one_in(4))
      dmu_map_overlay(&msg, 1U << random_.below(random_.one_in(4) ? 17 : 6));
    else if (random_.one_in(4))
      msg.flags |= DMU_F_COPY_FIRST;
  }
  return msg;
}

dmu_msg Garbage::bitmap(uint64_t id, uint64_t sector, uint64_t len) {
  uint64_t gen = id ? 0 : gen_;
  if (random_.one_in(4)) return dmu_msg_bitmap_all(id, gen, sector, len);
  if (random_.one_in(3)) return dmu_msg_bitmap(id, gen, sector, len, nullptr, 0);
  // The right number of bits for one granule size or another.
  uint64_t granules = std::min<uint64_t>(DMU_LEAF_GRANULES, len >> random_.below(5));
  return dmu_msg_bitmap(id, gen, sector, len, payload_.begin() + random_.below(64), static_cast<uint32_t>((granules + 7) / 8));
}

dmu_msg Garbage::data(const dmu_msg& fault) {
  uint64_t len = std::clamp<uint64_t>(random_.one_in(3) ? random_.below(2 * fault.len) : fault.len, 1, DMU_DATA_MAX / 512);
  return dmu_msg_data(fault.id, fault.sector, payload_.begin(), static_cast<uint32_t>(len * 512));
}

dmu_msg Garbage::answer(const dmu_msg& q) {
  if (random_.one_in(8)) return dmu_msg_fail(q.id, static_cast<int>(random_.one_in(2) ? random_.below(140) : 0));
  switch (q.type) {
    case DMU_MSG_FAULT:
      if (q.flags & DMU_F_LEAF) return bitmap(q.id, q.sector, q.len);
      if ((q.flags & DMU_F_READ) && random_.one_in(4)) return data(q);
      return map(q.id, q.sector, q.len, q.flags & DMU_F_WRITE);
    case DMU_MSG_DISCARD:
    case DMU_MSG_ZERO:
      return random_.one_in(2) ? dmu_msg_ack(q.id) : map(q.id, q.sector, q.len, true);
    case DMU_MSG_ERROR:
      return random_.one_in(2) ? dmu_msg_retry(q.id) : dmu_msg_fail(q.id, ENOSPC);
    default:
      return dmu_msg_ack(q.id);
  }
}

dmu_msg Garbage::unasked() {
  uint64_t sector = random_.below(sectors_), len = 1 + random_.below(std::min<uint64_t>(512, sectors_ - sector));
  switch (random_.below(8)) {
    case 0: return dmu_msg_committed(seq_);
    case 1: return dmu_msg_invalidate(1 + random_.below(1U << 20), sector, random_.one_in(8) ? sectors_ - sector : len);
    case 2:
    case 3:
      if (overlays_.empty()) break;
      {
        const dmu_msg& on = overlays_[random_.below(overlays_.size())];
        uint64_t leaf = static_cast<uint64_t>(on.granule) * DMU_LEAF_GRANULES;
        uint64_t at = leaf * random_.below((on.len + leaf - 1) / leaf);
        return bitmap(0, on.sector + at, std::min<uint64_t>(leaf, on.len - at));
      }
    default: break;
  }
  dmu_msg msg = map(0, sector, len, random_.one_in(2));
  dmu_map_push(&msg, gen_);
  return msg;
}

dmu_msg Garbage::noise() {
  dmu_msg msg;
  uint64_t words[sizeof msg / 8];
  for (uint64_t& word : words) word = random_.one_in(2) ? 0 : number();
  memcpy(&msg, words, sizeof msg);
  msg.type = static_cast<uint32_t>(random_.one_in(8) ? number() : DMU_MSG_MAP + random_.below(9));
  if (random_.one_in(2)) msg.reserved = 0;
  return msg;
}

void Garbage::spoil(dmu_msg& m) {
  switch (random_.below(16)) {
    case 0: m.type = static_cast<uint32_t>(random_.one_in(4) ? number() : random_.below(42)); break;
    case 1: m.flags ^= 1U << random_.below(32); break;
    case 2: m.flags ^= 1U << (8 + random_.below(6)); break;
    case 3: m.id = random_.one_in(2) ? number() : m.id + random_.below(3) - 1; break;
    case 4: m.sector = random_.one_in(2) ? number() : m.sector + random_.below(17) - 8; break;
    case 5: m.len = random_.one_in(2) ? number() : m.len + random_.below(17) - 8; break;
    case 6: m.seq = random_.one_in(2) ? number() : seq_ + random_.below(3); break;
    case 7: m.gen = random_.one_in(2) ? number() : gen_ - random_.below(3); break;
    case 8: m.read_sector = number(); break;
    case 9: m.write_sector = number(); break;
    case 10: m.read_dest = static_cast<uint32_t>(number()); break;
    case 11: m.write_dest = static_cast<uint32_t>(number()); break;
    case 12: m.granule = static_cast<uint32_t>(random_.one_in(2) ? number() : 1ULL << random_.below(32)); break;
    case 13: m.error = static_cast<int32_t>(number()); break;
    case 14: m.data = payload_.wrong(random_); break;
    default: m.data_len = static_cast<uint32_t>(number()); break;
  }
}

dmu_msg Garbage::next() {
  uint64_t kind = random_.below(100);
  dmu_msg msg;
  if (kind < 8) {
    msg = noise();
  } else if (kind < 16 && !past_.empty()) {
    msg = past_[random_.below(past_.size())];
  } else if (kind < 60 && !open_.empty()) {
    auto question = open_.lower_bound(random_.below(open_.rbegin()->first + 1));
    msg = answer(question->second);
  } else {
    msg = unasked();
  }
  for (int i = 0; i < 3 && random_.one_in(3); i++) spoil(msg);
  past_.push_back(msg);
  if (past_.size() > kPast) past_.pop_front();
  return msg;
}

}  // namespace dmutest
