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

// One that somebody is told of who may not read what() (a guest): they learn what it is
// about, in words of their own ("the disk xvda"), and its id.
class GuestError : public Error {
 public:
  GuestError(const Error& error, std::string subject)
      : Error(error), subject_(std::move(subject)) {}
  const std::string& subject() const { return subject_; }

 private:
  std::string subject_;
};

}  // namespace cowd
