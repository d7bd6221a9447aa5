// SPDX-License-Identifier: GPL-2.0-or-later
// Cases of the kernel tests. A program has many; each runs in a child process
// with a deadline, so that one that hangs in the kernel does not take the others
// with it. Output: "ok NAME" or "not ok NAME - why", a line a case. A case also
// fails if the kernel warned while it ran.
#pragma once

#include <chrono>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace dmutest {

using Ms = std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr Ms kSoon{20'000};    // what must happen, happens within this (emulated machines are slow)
constexpr Ms kNotYet{300};     // how long is watched that something does not happen
constexpr Ms kCase{60'000};    // deadline of a case

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Case {
  const char* name;
  void (*run)();
  Ms deadline;
};

struct Register {
  Register(const char* name, void (*run)(), Ms deadline = kCase);
};

[[noreturn]] void fail(const char* file, int line, const std::string& why);

// Calls `what` again and again until it is true; fails with `text` after `limit`.
// For states of the kernel that nothing announces.
void eventually(const char* file, int line, const char* text, const std::function<bool()>& what, Ms limit = kSoon);

// Runs a program without a shell and returns what it printed; fails if its status
// is not 0, unless `status` takes it.
std::string run(const std::vector<std::string>& argv, int* status = nullptr);

std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& text);

template <typename A, typename B>
void check_eq(const char* file, int line, const char* text, const A& a, const B& b) {
  if constexpr (std::is_integral_v<A> && std::is_integral_v<B>) {
    if (std::cmp_equal(a, b)) return;
  } else {
    if (a == b) return;
  }
  std::ostringstream why;
  why << text << ": " << a << " != " << b;
  fail(file, line, why.str());
}

}  // namespace dmutest

#define CASE_WITHIN(name, deadline)                                              \
  static void name();                                                            \
  static const dmutest::Register name##_case(#name, name, dmutest::Ms(deadline)); \
  static void name()
#define CASE(name) CASE_WITHIN(name, dmutest::kCase)

#define FAIL(why) dmutest::fail(__FILE__, __LINE__, why)
#define CHECK(what) \
  do {              \
    if (!(what)) dmutest::fail(__FILE__, __LINE__, #what); \
  } while (0)
#define CHECK_EQ(a, b) dmutest::check_eq(__FILE__, __LINE__, #a " == " #b, (a), (b))
#define EVENTUALLY(what) dmutest::eventually(__FILE__, __LINE__, #what, [&] { return (what); })
