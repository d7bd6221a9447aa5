// SPDX-License-Identifier: GPL-2.0-or-later
// One attached device: its dm device, backings, image and session, and the order in
// which they are made and taken down.
//
//   attach:   backings, image, note in the run directory, dm device, channel. If a step
//             fails, what was made before it is undone in reverse order.
//   detach:   suspend (noflush), last commit, remove, and when the channel has told
//             that the device is gone: image.close(), backings. A note that is left
//             without its dm device, as nothing could be written then, is cleaned at the next
//             start, or before the next attach of its store.
//   leave:    the same without waiting: the dm device is removed at its last close, and
//             what was promoted until then is told by the channel after that.
//   restart:  the dm device is there and holds its I/O: backings, image
//             (OpenRequest.reattach), channel; tried again until it works. Where a backing
//             hangs, that never ends: a device whose domain dies is failed meanwhile.
//   adopt:    the same for a device whose note was lost, once, when somebody attaches it.
//   stop:     last commit, channel closed; the dm device stays for the next cowd.
//
// All coroutines run on strand(); what may block runs on threads of its own.
#pragma once

#include <atomic>
#include <boost/asio/any_io_executor.hpp>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cowd/core/backing.hh"
#include "cowd/core/plugin_loader.hh"
#include "cowd/core/references.hh"
#include "cowd/core/spec.hh"
#include "cowd/daemon/device_entry.hh"
#include "cowd/daemon/dm.hh"
#include "cowd/daemon/event_ring.hh"
#include "cowd/daemon/run_dir.hh"
#include "cowd/daemon/session.hh"
#include "cowd/daemon/signal_event.hh"
#include "cowd/daemon/space.hh"

namespace cowd {

// What all devices share; outlives them.
struct DeviceEnvironment {
  std::shared_ptr<AsyncIo> io;
  PluginLoader* plugins = nullptr;
  // Other than open_backing only in tests.
  Backing (*open)(std::shared_ptr<AsyncIo>, const Component&, BackingUse) = open_backing;
  EventRing* events = nullptr;
  RunDir* run_dir = nullptr;
  SessionSettings session;
  uint64_t metadata_cache = kMetadataCache;  // bytes
  std::string host_id;
  std::string boot_id;
  std::function<void()> no_space;  // a store is full; any thread
  // Of what an image names itself, for the device of that name. Throws Error(EBUSY).
  std::function<Task<>(std::string device, Component file, bool writable)> claim;
};

class Device : public SessionObserver, public std::enable_shared_from_this<Device> {
 public:
  // The protocol's words; it also says waiting-for-space of an active one.
  enum class State { active, paused, replaying, recovering, detaching, failed };

  // on_gone: called on the strand when somebody else removed the dm device and all
  // of ours is closed. `strand`: all of this device's work.
  Device(boost::asio::any_io_executor strand, const DeviceEnvironment& environment,
         DeviceEntry entry, std::function<void()> on_gone);

  const boost::asio::any_io_executor& strand() const { return strand_; }
  const std::string& name() const { return name_; }
  const std::string& spec_text() const { return spec_text_; }
  State state() const { return state_.load(); }  // any thread

  // Throws Error(ECANCELED) and leaves nothing behind once `wanted` says no.
  Task<> attach(std::function<bool()> wanted = {});
  // Serves the dm device that an earlier cowd made. Returns after the first try, which
  // never ends where a backing hangs; when it failed, goes on trying by itself.
  Task<> reattach();
  // For a note without its dm device: closes the image, as nobody uses it any more.
  Task<> close_abandoned();
  // Serves a dm device that an earlier cowd made and of which there is no note any more. If that
  // fails it is as it was.
  Task<> adopt();
  // Throws Error(EBUSY) while somebody has it open; then nothing has changed. The
  // dm device is gone exactly if gone() says so afterwards, whatever is thrown.
  Task<> detach();
  bool gone() const { return gone_; }
  // Gone, but its store is not closed: close_abandoned() is still to be done.
  bool unclosed() const { return unclosed_; }
  // Begins a detach that ends at the last close; on_gone is called then.
  //   orderly   users still finish what they began
  //   dying     its domain is gone: what waits fails at once
  //   suspended its domain was saved: a transient store becomes durable first
  // Throws Error if a suspended one's store could not be made durable (EAGAIN: what it holds is
  // not known, as nobody serves it at this moment); nothing has begun then.
  enum class Leaving { orderly, dying, suspended };
  Task<> leave(Leaving how);
  // Once it leaves, perhaps still waiting for space to commit in or for a backing that hangs:
  // what waits fails at once.
  Task<> abandon();
  // Changes what is noted of it, durably in the run directory.
  Task<> note(std::function<void(DeviceEntry&)> change);
  // A copy, as it is now.
  Task<DeviceEntry> entry();
  Task<> pause();
  Task<> resume();
  Task<> stop();

  // Device objects of docs/control-protocol.md.
  Task<nlohmann::json> describe();
  Task<nlohmann::json> info();
  Task<nlohmann::json> stats();
  Task<std::vector<MapEntry>> map(std::optional<uint64_t> offset, std::optional<uint64_t> length);

  // Where the room for its store comes from; nowhere, if that cannot run out.
  Task<SpaceUser> space_user();
  // Something was done about what is full.
  Task<> space_added();

  void replayed() override;
  void no_space() override;
  void event(const std::string& type, const std::string& sentence, const std::string& id) override;

 private:
  class Exclusive;
  class Using;

  // device_open.cc
  Task<> open_backings(bool reattach);
  Task<> open_image(bool reattach, FileReferences::Purpose purpose);
  Task<> create_dm_device();
  Task<> check_table();
  Task<> open_session();
  Task<> attach_steps(class Undo& undo, const std::function<bool()>& wanted);
  Task<bool> try_reattach();
  Task<> require_on_top();
  Task<> serve_again();
  Task<> restore_suspension();
  Task<> keep_reattaching();
  void close_backings();
  const Backing& backing_of(const Disk* disk) const;
  std::vector<dm::Dest> dests() const;
  Task<uint64_t> make_room();
  void restore_length(uint64_t bytes) const;
  Task<> invalidate(Range range);

  // device.cc
  Task<> supervise();
  Task<> removed_by_others();
  Task<> close_image();
  Task<> close_what_is_left();
  void cut_file(uint64_t bytes);
  void cut_references(const std::vector<Image::Length>& lengths);
  Task<> write_entry();
  Task<> remove_dm_device();
  Task<> leave_here(Leaving how);
  Task<> preserve();
  Task<> fail_what_waits();
  // By try_reattach(), which may hang.
  bool being_taken_up() const { return busy_ == kTakenUp; }
  Task<> wait_for_end();
  Task<> wait_for_users();
  const char* state_word() const;
  void become(State state) { state_.store(state); }
  void failed(const std::string& type, const std::string& sentence);

  static constexpr const char* kTakenUp = "taken up again";

  boost::asio::any_io_executor strand_;
  const DeviceEnvironment& environment_;
  DeviceEntry entry_;
  const std::string name_;
  const std::string spec_text_;
  std::function<void()> on_gone_;
  std::atomic<State> state_{State::recovering};

  DiskSpec spec_;
  const FormatDescriptor* format_ = nullptr;
  Backing top_;
  std::optional<Backing> base_;
  std::shared_ptr<FileReferences> references_;  // what the image names itself
  std::vector<StoreSpace> spaces_;              // beneath the top, as it was when that was opened
  std::unique_ptr<Image> image_;
  std::shared_ptr<Session> session_;

  SignalEvent changed_;
  const char* busy_ = nullptr;  // what is being done to it: "detached"
  bool writing_ = false;        // its note
  unsigned users_ = 0;          // requests that are inside the image
  bool supervised_ = false;     // supervise() runs
  bool stopping_ = false;
  bool leaving_ = false;
  bool gone_ = false;
  bool unclosed_ = false;
};

const char* state_name(Device::State state);

}  // namespace cowd
