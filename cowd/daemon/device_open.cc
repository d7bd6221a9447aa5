// SPDX-License-Identifier: GPL-2.0-or-later
// How a device comes up: a new one, or the one that an earlier cowd left.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>
#include <utility>

#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"
#include "cowd/core/file_length.hh"
#include "cowd/daemon/blocking_call.hh"
#include "cowd/daemon/device.hh"
#include "cowd/daemon/log.hh"
#include "cowd/daemon/text.hh"
#include "cowd/daemon/undo.hh"
#include "formats/common/whole_blocks.hh"

namespace cowd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

// The last close of a channel is the fence: a cowd that was just killed may still be
// at it. Its exit takes long only where a device it reads hangs.
constexpr auto kFenceWait = 20ms;
constexpr unsigned kFenceTries = 250;

const FormatDescriptor* load_format(PluginLoader* plugins, const std::string& format) {
  return &plugins->load(format);
}

Task<> sleep_for(std::chrono::milliseconds time) {
  asio::steady_timer timer(co_await asio::this_coro::executor, time);
  co_await timer.async_wait(asio::use_awaitable);
}

// A backing may have taken long.
void require_wanted(const std::string& name, const std::function<bool()>& wanted) {
  if (wanted && !wanted())
    throw Error(ECANCELED, text("The attach of ", name, " was given up by who asked for it."));
}

}  // namespace

Task<> Device::attach(std::function<bool()> wanted) {
  Undo undo;
  std::exception_ptr error;
  busy_ = "attached";
  try {
    co_await attach_steps(undo, wanted);
  } catch (...) {
    error = std::current_exception();
  }
  if (error) co_await undo.run(name_);
  busy_ = nullptr;
  changed_.notify();
  if (error) std::rethrow_exception(error);
}

Task<> Device::attach_steps(Undo& undo, const std::function<bool()>& wanted) {
  const uint64_t length = co_await make_room();
  undo.add("the length of the file", [this, length]() -> Task<> {
    co_await blocking(&Device::restore_length, this, length);
  });
  undo.add("the backings", [this]() -> Task<> {
    const auto references = references_;
    close_backings();
    if (references) co_await blocking(&FileReferences::restore_lengths, references);
  });
  co_await open_backings(false);
  // From the opening on the store is ours, and a cowd that dies then has to leave word of it.
  undo.add("the note", [this]() -> Task<> {
    environment_.run_dir->remove(name_);
    co_return;
  });
  co_await write_entry();
  undo.add("the opening of the image", [this]() -> Task<> {
    if (image_) co_await close_image();
  });
  co_await open_image(false, FileReferences::Purpose::attach);
  require_wanted(name_, wanted);
  const auto is_top = [this](const dm::Dest& dest) { return dest.dev == dm::dev_text(top_.dev); };
  entry_.top_mapped = std::ranges::any_of(dests(), is_top);
  co_await write_entry();
  co_await create_dm_device();
  undo.add("the dm device", [this]() -> Task<> {
    co_await remove_dm_device();
    co_await wait_for_end();
  });
  co_await open_session();
  while (supervised_ && state() == State::replaying) co_await changed_.wait();
  if (!supervised_)
    throw Error(ENODEV, text("The device ", name_, " was removed while it was attached."));
  require_wanted(name_, wanted);
}

Task<> Device::open_backings(bool reattach) {
  spec_ = parse_spec(spec_text_);
  format_ = co_await blocking(load_format, environment_.plugins, spec_.format);
  BackingUse use = entry_.read_only ? (format_->room ? BackingUse::image : BackingUse::base)
                   : reattach && entry_.top_mapped ? BackingUse::reattach
                                                   : BackingUse::top;
  top_ = co_await blocking(environment_.open, environment_.io, spec_.top, use);
  if (spec_.base)
    base_ = co_await blocking(environment_.open, environment_.io, *spec_.base, BackingUse::base);
  spaces_.clear();
  if (!entry_.read_only) spaces_ = co_await blocking(spaces_beneath, spec_.top);
}

void Device::close_backings() {
  image_.reset();
  references_.reset();
  base_.reset();
  top_ = {};
}

// A file that its format lets grow gets all the length that it may come to need: that of a
// destination does not change while the table is there. The length takes no space. Returns
// what it was; 0 if it is so still.
Task<uint64_t> Device::make_room() {
  spec_ = parse_spec(spec_text_);
  format_ = co_await blocking(load_format, environment_.plugins, spec_.format);
  struct stat info {};
  if (entry_.read_only || !format_->room || spec_.top.kind != Component::Kind::path ||
      stat(spec_.top.path.c_str(), &info) < 0 || !S_ISREG(info.st_mode))
    co_return 0;
  Backing file =
      co_await blocking(environment_.open, environment_.io, spec_.top, BackingUse::change);
  const uint64_t room = co_await format_->room(file.disk);
  if (room <= file.disk->size()) co_return 0;
  co_await file.disk->resize(room);
  co_return static_cast<uint64_t>(info.st_size);
}

// After an attach that failed, unless something was written behind it meanwhile.
void Device::restore_length(uint64_t bytes) const {
  if (!bytes) return;
  const int fd = open(spec_.top.path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return;
  if (const int error = cut_unwritten(fd, bytes))
    log(Level::warning,
        text("The file ", spec_.top.path, " stays longer than it was: ", errno_text(error), "."),
        {name_, {}});
  close(fd);
}

Task<> Device::open_image(bool reattach, FileReferences::Purpose purpose) {
  if (format_->needs_base && !base_)
    throw Error(EINVAL, text("The format ", spec_.format, " needs a base: write ", spec_.format,
                             ":", spec_.top.text(), ":BASE."));
  if (!format_->wants_base && base_)
    throw Error(EINVAL, text("The format ", spec_.format, " takes no base: write ", spec_.format,
                             ":", spec_.top.text(), "."));
  OpenRequest request;
  request.top = top_.disk;
  if (base_) request.base = base_->disk;
  request.durability = entry_.durability;
  request.read_only = entry_.read_only;
  request.reattach = reattach;
  request.host_id = environment_.host_id;
  request.boot_id = environment_.boot_id;
  FileReferences::Claim claim;
  if (environment_.claim)
    claim = [this](Component file, bool writable) {
      return environment_.claim(name_, std::move(file), writable);
    };
  references_ =
      std::make_shared<FileReferences>(environment_.io, environment_.plugins, purpose, spec_.top,
                                       top_.disk, std::move(claim), environment_.metadata_cache);
  request.references = references_;
  request.metadata_cache = environment_.metadata_cache;
  // The device outlives its image.
  request.invalidate = [this](Range range) { return invalidate(range); };
  image_ = co_await format_->open(std::move(request));
}

// After the session nothing of the kernel's is left to drop.
Task<> Device::invalidate(Range range) {
  const auto session = session_;
  if (session) co_await session->invalidate(range);
}

const Backing& Device::backing_of(const Disk* disk) const {
  if (base_ && disk == base_->disk.get()) return *base_;
  const Backing* named = references_->backing_of(disk);
  return named ? *named : top_;
}

std::vector<dm::Dest> Device::dests() const {
  std::vector<dm::Dest> list;
  for (const Destination& destination : image_->destinations())
    list.push_back({dm::dev_text(backing_of(destination.disk).dev), destination.writable});
  return list;
}

Task<> Device::create_dm_device() {
  require_whole_blocks(*image_);
  dm::NewDevice device;
  device.name = name_;
  device.uuid = entry_.uuid;
  device.key = entry_.key;
  device.sectors = image_->sectors();
  device.dests = dests();
  device.read_only = entry_.read_only;
  device.queue_if_no_daemon = entry_.queue_if_no_daemon;
  device.no_daemon_seconds = entry_.no_daemon_seconds;
  device.max_extents = static_cast<uint32_t>(entry_.max_extents);
  device.discard_granularity = image_->discard_granularity();
  co_await blocking(dm::create, device);
}

// What the kernel maps to must be what the specification means, still.
Task<> Device::check_table() {
  dm::Table table = co_await blocking(dm::table, name_);
  if (table.sectors != image_->sectors())
    throw Error(EINVAL, text("The device ", name_, " has ", table.sectors, " sectors, but ",
                             spec_text_, " has ", image_->sectors(),
                             " now. Give the specification back what it meant at attach."));
  auto mine = dests();
  bool same = mine.size() == table.dests.size();
  for (size_t i = 0; same && i < mine.size(); ++i) same = mine[i].dev == table.dests[i].dev;
  if (!same)
    throw Error(EINVAL, text("The device ", name_, " lies on other devices than ", spec_text_,
                             " names now. Give the paths back what they meant at attach."));
}

Task<> Device::open_session() {
  for (unsigned tries = 1;; ++tries) {
    try {
      auto channel = co_await blocking(open_kernel_channel, strand_, entry_.key, name_);
      session_ = std::make_shared<Session>(strand_, std::move(channel), *image_,
                                           environment_.session, *this, name_);
      break;
    } catch (const Error& error) {
      if (error.code() != EBUSY || tries == kFenceTries) throw;
    }
    co_await sleep_for(kFenceWait);
  }
  become(State::replaying);
  supervised_ = true;
  asio::co_spawn(
      strand_, [self = shared_from_this()]() -> Task<> { co_await self->supervise(); },
      asio::detached);
}

Task<> Device::reattach() {
  bool served = co_await try_reattach();
  if (served) co_return;
  asio::co_spawn(
      strand_, [self = shared_from_this()]() -> Task<> { co_await self->keep_reattaching(); },
      asio::detached);
}

Task<> Device::keep_reattaching() {
  auto delay = 1000ms;
  while (!stopping_ && !gone_) {
    co_await sleep_for(delay);
    delay = std::min(delay * 2, 30000ms);
    // A detach may have begun meanwhile, and needs no daemon.
    if (busy_ || stopping_ || gone_) continue;
    bool served = co_await try_reattach();
    if (served) co_return;
  }
}

Task<bool> Device::try_reattach() {
  become(State::recovering);
  busy_ = kTakenUp;  // no detach may come in between
  std::string why;
  try {
    co_await open_backings(true);
    co_await serve_again();
    environment_.events->add("reattached", name_, text("The device ", name_, " is served again."));
  } catch (const std::exception& error) {
    why = error.what();
  }
  if (!why.empty() && !supervised_) {
    co_await wait_for_users();
    close_backings();
    become(State::failed);
  }
  busy_ = nullptr;
  changed_.notify();
  if (!why.empty() && !leaving_)
    failed("reattach-failed",
           text("The device ", name_, " of an earlier cowd is not served as it should be. ", why,
                supervised_ ? "" : " Its users wait; cowd goes on trying."));
  if (gone_) co_await removed_by_others();
  co_return supervised_ || gone_;
}

Task<> Device::serve_again() {
  co_await open_image(true, FileReferences::Purpose::reattach);
  co_await check_table();
  co_await open_session();
  co_await restore_suspension();
}

Task<> Device::adopt() {
  busy_ = kTakenUp;
  std::exception_ptr error;
  try {
    co_await open_backings(true);
    co_await require_on_top();
    co_await write_entry();
    co_await serve_again();
  } catch (...) {
    error = std::current_exception();
  }
  const bool served = supervised_;
  if (!served) {
    co_await wait_for_users();
    close_backings();
    environment_.run_dir->remove(name_);
  }
  busy_ = nullptr;
  changed_.notify();
  if (!served) std::rethrow_exception(error);
}

// Opening the store of another device might change it.
Task<> Device::require_on_top() {
  const dm::Table table = co_await blocking(dm::table, name_);
  const dm::Info info = co_await blocking(dm::info, name_);
  const auto is_top = [this](const dm::Dest& dest) { return dest.dev == dm::dev_text(top_.dev); };
  if (std::ranges::none_of(table.dests, is_top) || info.read_only != entry_.read_only)
    throw Error(EEXIST, text("There is a device ", name_,
                             " already, which an earlier cowd made of something else than ",
                             spec_text_, info.read_only ? ", to be read only" : "",
                             ". Attach what it was made of, or give this one another name."));
}

// Paused or not as it was noted: an earlier cowd may have died in the middle.
Task<> Device::restore_suspension() {
  dm::Info info = co_await blocking(dm::info, name_);
  if (info.suspended && !entry_.paused)
    co_await blocking(dm::resume, name_);
  else if (!info.suspended && entry_.paused)
    co_await blocking(dm::suspend, name_);
}

Task<> Device::close_abandoned() {
  co_await open_backings(false);
  // The loop devices of what it names went with the dm device.
  co_await open_image(true, FileReferences::Purpose::attach);
  co_await close_image();
  close_backings();
}

}  // namespace cowd
