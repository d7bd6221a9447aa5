// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/device.hh"

#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>

#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/core/json.hh"
#include "cowd/core/units.hh"
#include "cowd/daemon/blocking_call.hh"
#include "cowd/daemon/error_id.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

const char* state_name(Device::State state) {
  switch (state) {
    case Device::State::active: return "active";
    case Device::State::paused: return "paused";
    case Device::State::replaying: return "replaying";
    case Device::State::recovering: return "recovering";
    case Device::State::detaching: return "detaching";
    case Device::State::failed: break;
  }
  return "failed";
}

// While one of these is there, the image and the backings stay.
class Device::Using {
 public:
  explicit Using(Device& device) : device_(device) { ++device_.users_; }
  ~Using() {
    --device_.users_;
    device_.changed_.notify();
  }
  Using(const Using&) = delete;
  Using& operator=(const Using&) = delete;

 private:
  Device& device_;
};

// One thing at a time is done to a device.
class Device::Exclusive {
 public:
  Exclusive(Device& device, const char* what) : device_(device) {
    if (device.busy_)
      throw Error(EBUSY, text("The device ", device.name_, " is being ", device.busy_,
                              " at this moment. Try again when that has ended."));
    device.busy_ = what;
  }
  ~Exclusive() {
    device_.busy_ = nullptr;
    device_.changed_.notify();
  }
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;

 private:
  Device& device_;
};

Device::Device(asio::any_io_executor strand, const DeviceEnvironment& environment,
               DeviceEntry entry, std::function<void()> on_gone)
    : strand_(strand),
      environment_(environment),
      entry_(std::move(entry)),
      name_(entry_.name),
      spec_text_(entry_.spec),
      on_gone_(std::move(on_gone)),
      changed_(strand) {}

void Device::replayed() {
  become(entry_.paused ? State::paused : State::active);
  changed_.notify();
}

void Device::event(const std::string& type, const std::string& sentence, const std::string& id) {
  environment_.events->add(type, name_, sentence, id);
}

void Device::no_space() {
  if (environment_.no_space) environment_.no_space();
}

Task<SpaceUser> Device::space_user() {
  auto self = shared_from_this();
  SpaceUser user;
  user.device = name_;
  user.spaces = spaces_;
  user.waiting = session_ && session_->space_wait();
  co_return user;
}

Task<> Device::space_added() {
  auto self = shared_from_this();
  if (session_) session_->space_added();
  co_return;
}

const char* Device::state_word() const {
  bool waits = state() == State::active && session_ && session_->space_wait();
  return waits ? "waiting-for-space" : state_name(state());
}

void Device::failed(const std::string& type, const std::string& sentence) {
  std::string id = new_error_id();
  log(Level::error, sentence, {name_, id});
  event(type, sentence, id);
}

// Keeps a session on the device until the device is gone or cowd stops.
Task<> Device::supervise() {
  auto self = shared_from_this();
  Session::End end = Session::End::stopped;
  std::string broken;
  try {
    end = co_await session_->run();
  } catch (const std::exception& error) {
    broken = error.what();
  }
  session_.reset();
  supervised_ = false;
  co_await wait_for_users();
  if (!broken.empty()) {
    failed("kernel-error",
           text("The channel of ", name_, " broke. ", broken, " cowd opens another one."));
    become(State::recovering);
    if (!stopping_ && !busy_) {
      asio::steady_timer pause(strand_, 1s);
      co_await pause.async_wait(asio::use_awaitable);
      while (busy_) co_await changed_.wait();
      co_await wait_for_users();
      if (!stopping_ && !gone_) {
        close_backings();
        co_await reattach();
      }
    }
  }
  changed_.notify();
  if (end == Session::End::device_gone) {
    gone_ = true;
    if (!busy_) co_await removed_by_others();
  }
}

Task<> Device::removed_by_others() {
  Exclusive exclusive(*this, "cleaned up");
  become(State::detaching);
  std::string sentence =
      text("The device ", name_, leaving_ ? " is detached." : " was removed, not by cowd.");
  log(leaving_ ? Level::info : Level::warning, sentence, {name_, {}});
  try {
    co_await close_what_is_left();
  } catch (const std::exception& error) {
    failed("io-error", text("The store of ", name_, " could not be marked clean. ", error.what(),
                            " cowd does that before it is attached again."));
  }
  close_backings();
  while (writing_) co_await changed_.wait();
  if (!unclosed_) environment_.run_dir->remove(name_);
  event("detached", sentence, {});
  on_gone_();
}

// An image that could not be opened for long is still ours on its disk: nobody could attach it
// again. A store that goes now needs no end.
Task<> Device::close_what_is_left() {
  const bool ends = !entry_.read_only && !(entry_.store && !entry_.store->saved);
  unclosed_ = ends;
  if (image_)
    co_await close_image();
  else if (ends)
    co_await close_abandoned();
  unclosed_ = false;
}

Task<> Device::close_image() {
  co_await image_->close();
  const uint64_t used = image_->used_bytes();
  const std::vector<Image::Length> lengths = image_->used_lengths();
  image_.reset();
  if (entry_.read_only) co_return;
  if (used) co_await blocking(&Device::cut_file, this, used);
  co_await blocking(&Device::cut_references, this, lengths);
}

void Device::cut_references(const std::vector<Image::Length>& lengths) {
  for (const Image::Length& each : lengths) try {
      references_->cut(each.disk, each.bytes);
    } catch (const Error& error) {
      log(Level::warning, error.what(), {name_, {}});
    }
}

// What make_room() gave and nobody used. A crash before this costs nothing but the length.
void Device::cut_file(uint64_t bytes) {
  struct stat info {};
  const std::string& path = spec_.top.path;
  if (spec_.top.kind != Component::Kind::path || stat(path.c_str(), &info) < 0 ||
      !S_ISREG(info.st_mode) || static_cast<uint64_t>(info.st_size) <= bytes)
    return;
  if (truncate(path.c_str(), static_cast<off_t>(bytes)) < 0)
    log(Level::warning,
        text("The file ", path, " stays longer than it must be, ", info.st_size,
             " bytes: ", errno_text(errno), "."),
        {name_, {}});
}

// One at a time, so that what is noted last is what stays. What is gone has no note.
Task<> Device::write_entry() {
  while (writing_) co_await changed_.wait();
  if (gone_) co_return;
  writing_ = true;
  std::exception_ptr error;
  try {
    co_await blocking(&RunDir::write, environment_.run_dir, entry_);
  } catch (...) {
    error = std::current_exception();
  }
  writing_ = false;
  changed_.notify();
  if (error) std::rethrow_exception(error);
}

Task<> Device::remove_dm_device() { co_await blocking(dm::remove, name_); }

Task<> Device::wait_for_end() {
  while (supervised_) co_await changed_.wait();
  co_await wait_for_users();
}

Task<> Device::wait_for_users() {
  while (users_ || writing_) co_await changed_.wait();
}

Task<> Device::detach() {
  auto self = shared_from_this();
  Exclusive exclusive(*this, "detached");
  dm::Info info = co_await blocking(dm::info, name_);
  if (info.open_count)
    throw Error(EBUSY, text("The device ", name_, " is in use: ", info.open_count,
                            info.open_count == 1 ? " user has" : " users have",
                            " it open. Unmount or close it first."));
  State before = state();
  become(State::detaching);
  std::exception_ptr error;
  try {
    co_await blocking(dm::suspend, name_);
    if (session_) co_await session_->commit_all();
    co_await remove_dm_device();
    gone_ = true;
  } catch (...) {
    error = std::current_exception();
  }
  if (error && !gone_) {  // somebody was faster, or the store cannot be written
    if (before != State::paused) co_await blocking(dm::resume, name_);
    become(before);
    std::rethrow_exception(error);
  }
  co_await wait_for_end();
  try {
    co_await close_what_is_left();
  } catch (const std::exception& failure) {
    close_backings();
    throw Error(
        EIO, text("The device ", name_, " is detached, but its store could not be marked clean. ",
                  failure.what(), " cowd does that before it is attached again."));
  }
  close_backings();
}

Task<> Device::leave(Leaving how) {
  auto self = shared_from_this();
  if (how == Leaving::dying && being_taken_up()) co_await fail_what_waits();
  while (busy_) co_await changed_.wait();
  if (gone_) co_return;
  std::exception_ptr error;
  try {
    Exclusive exclusive(*this, "detached");
    co_await leave_here(how);
  } catch (...) {
    error = std::current_exception();
  }
  if (gone_) co_await removed_by_others();
  if (error) std::rethrow_exception(error);
}

Task<> Device::abandon() {
  auto self = shared_from_this();
  while (!leaving_ && !gone_ && !being_taken_up()) co_await changed_.wait();
  if (!gone_) co_await fail_what_waits();
}

// In this order: a wiped device is nobody's any more, so it must be on its way out by then.
Task<> Device::fail_what_waits() {
  Using use(*this);  // until then no other device has this name
  leaving_ = true;
  changed_.notify();
  co_await blocking(dm::remove_deferred, name_);
  co_await blocking(dm::wipe, name_);
}

// What was promoted and not told yet is known to the kernel alone, and goes with its device.
Task<> Device::preserve() {
  if (entry_.read_only) co_return;
  if (!session_)
    throw Error(EAGAIN, text("The device ", name_, " is ", state_name(state()),
                             ", so not all that its store holds is known. It is kept until cowd "
                             "serves it again: give it back what it lies on."));
  Using use(*this);
  co_await image_->preserve();
}

Task<> Device::leave_here(Leaving how) {
  if (how == Leaving::suspended) co_await preserve();
  leaving_ = true;
  changed_.notify();
  // Without a session nobody would answer what waits.
  bool wipe = how == Leaving::dying || !session_;
  if (!wipe) {
    try {
      co_await session_->commit_all();
    } catch (const std::exception& error) {
      failed("commit-failed",
             text("The last commit of ", name_, " is still to come. ", error.what()));
    }
  }
  if (wipe)
    co_await fail_what_waits();
  else
    co_await blocking(dm::remove_deferred, name_);
  if (session_ || supervised_) co_return;  // the channel tells when it has gone
  gone_ = true;
}

Task<> Device::note(std::function<void(DeviceEntry&)> change) {
  auto self = shared_from_this();
  change(entry_);
  co_await write_entry();
}

Task<DeviceEntry> Device::entry() {
  auto self = shared_from_this();
  co_return entry_;
}

Task<> Device::pause() {
  auto self = shared_from_this();
  Exclusive exclusive(*this, "paused");
  if (state() == State::paused) co_return;
  if (!session_ || state() != State::active)
    throw Error(EAGAIN, text("The device ", name_, " is ", state_name(state()),
                             " and cannot be paused now."));
  co_await session_->commit_all();
  entry_.paused = true;
  std::exception_ptr error;
  try {
    co_await write_entry();
    co_await blocking(dm::suspend, name_);
  } catch (...) {
    error = std::current_exception();
  }
  if (error) {
    entry_.paused = false;
    co_await write_entry();
    std::rethrow_exception(error);
  }
  become(State::paused);
  if (session_)  // what was promoted while the I/O under way ended
    co_await session_->commit_all();
}

Task<> Device::resume() {
  auto self = shared_from_this();
  Exclusive exclusive(*this, "resumed");
  if (state() != State::paused)
    throw Error(EINVAL, text("The device ", name_, " is ", state_name(state()),
                             ", not paused: there is nothing to resume."));
  entry_.paused = false;
  co_await write_entry();
  co_await blocking(dm::resume, name_);
  become(State::active);
}

Task<> Device::stop() {
  auto self = shared_from_this();
  stopping_ = true;
  if (session_) co_await session_->stop();
  co_await wait_for_end();
}

Task<nlohmann::json> Device::describe() {
  auto self = shared_from_this();
  auto info = co_await blocking(dm::find, name_);
  nlohmann::json json = {{"name", name_},
                         {"path", info ? info->path : "/dev/mapper/" + name_},
                         {"dev", info ? info->dev : ""},
                         {"uuid", entry_.uuid},
                         {"spec", spec_text_},
                         {"format", entry_.format},
                         {"durability", durability_name(entry_.durability)},
                         {"state", state_word()},
                         {"size", image_ ? image_->sectors() * 512 : 0},
                         {"read_only", entry_.read_only},
                         {"open_count", info ? info->open_count : 0},
                         {"attached_at", entry_.attached_at}};
  if (auto wait = session_ ? session_->space_wait() : std::nullopt)
    json["waiting_for_space"] = {{"destination", wait->destination},
                                 {"since", format_rfc3339(wait->since)},
                                 {"writes", wait->writes},
                                 {"metadata", wait->metadata}};
  json["destinations"] = nlohmann::json::array();
  if (!image_) co_return json;
  auto devs = dests();
  size_t index = 0;
  for (const Destination& destination : image_->destinations())
    json["destinations"].push_back({{"path", destination.disk->name()},
                                    {"dev", devs[index++].dev},
                                    {"writable", destination.writable}});
  co_return json;
}

Task<nlohmann::json> Device::info() {
  auto self = shared_from_this();
  auto json = co_await describe();
  Using use(*this);
  if (format_ && format_->info && top_.disk) json["image"] = co_await format_->info(top_.disk);
  co_return json;
}

Task<nlohmann::json> Device::stats() {
  auto self = shared_from_this();
  nlohmann::json json = {{"name", name_}};
  json["kernel"] = co_await blocking(dm::status, name_);
  json["session"] = session_ ? session_->stats() : nlohmann::json::object();
  json["image"] = image_ ? image_->stats() : nlohmann::json::object();
  co_return json;
}

Task<std::vector<MapEntry>> Device::map(std::optional<uint64_t> offset,
                                        std::optional<uint64_t> length) {
  auto self = shared_from_this();
  Using use(*this);
  // Without a session the image may be about to be closed.
  if (!image_ || !session_)
    throw Error(EAGAIN, text("The device ", name_, " is ", state_name(state()),
                             ": its map cannot be read now."));
  uint64_t size = image_->sectors() * 512;
  uint64_t first = offset.value_or(0);
  if (first % 512 || (length && *length % 512))
    throw Error(EINVAL, "\"offset\" and \"length\" have to be multiples of 512 bytes.");
  if (first > size)
    throw Error(EINVAL, text("\"offset\" lies beyond the end of ", name_, ", ", size, " bytes."));
  uint64_t bytes = std::min(length.value_or(size), size - first);
  if (!bytes) co_return std::vector<MapEntry>{};
  co_return co_await image_->map({first / 512, bytes / 512});
}

}  // namespace cowd
