// SPDX-License-Identifier: GPL-2.0-or-later
// The one way to report an error: an errno for programs, a sentence for people.
#pragma once

#include <cerrno>
#include <stdexcept>
#include <string>

namespace cowd {

// what() is a whole sentence that names the object, what is wrong and what to do.
class Error : public std::runtime_error {
 public:
  Error(int code, const std::string& sentence) : std::runtime_error(sentence), code_(code) {}
  int code() const { return code_; }  // a positive errno

 private:
  int code_;
};

}  // namespace cowd
