// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/left_events.hh"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "cowd/core/fd.hh"
#include "cowd/core/utf8.hh"

namespace cowd {

namespace {

constexpr off_t kMost = 64 << 10;

std::string path_in(const std::string& run_dir) { return run_dir + "/left-events"; }

bool is_id(const std::string& word) {
  return word.size() == 10 && word.starts_with("e-") &&
         word.find_first_not_of("0123456789abcdef", 2) == std::string::npos;
}

std::string read_file(const std::string& path) {
  const Fd fd(open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  std::string content(2 * kMost, '\0');
  const ssize_t count = fd.get() < 0 ? 0 : read(fd.get(), content.data(), content.size());
  content.resize(count < 0 ? 0 : static_cast<size_t>(count));
  return content;
}

}  // namespace

void leave_event(const std::string& run_dir, const LeftEvent& event) noexcept try {
  const Fd fd(open(path_in(run_dir).c_str(),
                   O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600));
  struct stat info {};
  if (fd.get() < 0 || fstat(fd.get(), &info) < 0 || info.st_size >= kMost) return;
  std::string line = event.id + " " + event.sentence.substr(0, 4096);
  std::replace(line.begin(), line.end(), '\n', ' ');
  line += '\n';
  if (write(fd.get(), line.data(), line.size()) < 0) return;
} catch (...) {
}

std::vector<LeftEvent> take_left_events(const std::string& run_dir) {
  // Under another name nobody begins to write to it.
  const std::string taken = path_in(run_dir) + ".taken";
  rename(path_in(run_dir).c_str(), taken.c_str());
  std::istringstream lines(read_file(taken));
  unlink(taken.c_str());
  std::vector<LeftEvent> events;
  for (std::string line; std::getline(lines, line);) {
    const size_t space = std::min(line.find(' '), line.size());
    LeftEvent event{line.substr(0, space), line.substr(std::min(space + 1, line.size()))};
    if (is_id(event.id) && !event.sentence.empty() && is_utf8(event.sentence))
      events.push_back(std::move(event));
  }
  return events;
}

}  // namespace cowd
