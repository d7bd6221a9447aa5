// SPDX-License-Identifier: GPL-2.0-or-later
// What a broken or hostile daemon says: right answers, right answers with something
// changed, answers to nothing, and noise. All of it follows from a seed and from what
// was read.
#pragma once

#include <cstdint>
#include <deque>
#include <initializer_list>
#include <map>
#include <random>
#include <vector>

#include "dmu.h"

namespace dmutest {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  uint64_t any() { return engine_(); }
  uint64_t below(uint64_t n) { return n ? engine_() % n : 0; }
  bool one_in(uint64_t n) { return below(n) == 0; }
  template <typename T>
  T of(std::initializer_list<T> list) {
    return list.begin()[below(list.size())];
  }

 private:
  std::mt19937_64 engine_;
};

// Memory for payloads: DMU_DATA_MAX bytes of it, and a page behind that is not to be
// touched.
class Payload {
 public:
  Payload();
  ~Payload();
  Payload(const Payload&) = delete;
  Payload& operator=(const Payload&) = delete;
  uint8_t* begin() const { return at_; }
  uint8_t* end() const { return at_ + DMU_DATA_MAX; }
  // An address that is wrong for that many bytes.
  uint64_t wrong(Random& random) const;

 private:
  uint8_t* at_;
};

class Garbage {
 public:
  // A device of so many sectors over destinations of so many.
  Garbage(uint64_t seed, uint64_t sectors, uint64_t dest_sectors);

  void heard(const dmu_msg& msg);
  dmu_msg next();
  // The kernel's answer to one.
  void told(const dmu_msg& msg, int error);
  // What ends each question that is open, and commits what was promoted.
  std::vector<dmu_msg> mercy();
  const Payload& payload() const { return payload_; }
  Random& random() { return random_; }

 private:
  dmu_msg answer(const dmu_msg& question);
  dmu_msg unasked();
  dmu_msg noise();
  dmu_msg map(uint64_t id, uint64_t sector, uint64_t len, bool write);
  dmu_msg bitmap(uint64_t id, uint64_t sector, uint64_t len);
  dmu_msg data(const dmu_msg& fault);
  void spoil(dmu_msg& msg);
  uint64_t number();

  Random random_;
  Payload payload_;
  uint64_t sectors_, dest_sectors_;
  uint64_t gen_ = 1, seq_ = 0;
  std::map<uint64_t, dmu_msg> open_;  // questions, by id
  std::deque<dmu_msg> past_;          // sent
  std::vector<dmu_msg> overlays_;     // that were taken: bits are pushed to them
};

}  // namespace dmutest
