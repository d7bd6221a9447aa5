// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/core/iscsi.hh"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <thread>
#include <utility>
#include <vector>

#include "cowd/core/backing.hh"
#include "cowd/core/child.hh"
#include "cowd/core/error.hh"
#include "cowd/core/iscsi_record.hh"

namespace cowd {

namespace fs = std::filesystem;

namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr const char* kInterface = "cowd";
constexpr const char* kIscsiInterfaces = "/etc/iscsi/ifaces";
constexpr const char* kSessions = "/sys/class/iscsi_session";
// For an attachment in all: xl gives the whole of its script 40 s. iscsid gives up before
// (iscsi_record.cc).
constexpr auto kAttach = 24s;
constexpr auto kDiskAppears = 10s;
constexpr int kLogOuts = 10;  // tries

// A session of ours: what was asked for, not what the target calls itself.
struct Key {
  std::string host;
  uint16_t port;
  std::string target;
  auto operator<=>(const Key&) const = default;
  std::string portal() const {
    return (host.find(':') == std::string::npos ? host : "[" + host + "]") + ":" +
           std::to_string(port);
  }
  std::string text() const { return "The iSCSI target " + target + " at " + portal(); }
};

Key key_of(const Component& component) {
  return {component.host, component.port, component.target};
}

// One at a time logs in to a target or out of it.
std::shared_ptr<std::timed_mutex> door_of(const Key& key) {
  static std::mutex mutex;
  static std::map<Key, std::shared_ptr<std::timed_mutex>> doors;
  const std::lock_guard lock(mutex);
  auto& door = doors[key];
  if (!door) door = std::make_shared<std::timed_mutex>();
  return door;
}

std::chrono::milliseconds left_until(Clock::time_point deadline) {
  return std::max(std::chrono::milliseconds(1),
                  std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()));
}

std::string first_line(const fs::path& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

struct Session {
  fs::path path;  // /sys/class/iscsi_session/session3
  Key key;
  std::string id() const { return path.filename().string().substr(7); }
};

// Of all that the kernel has, those through our interface.
std::vector<Session> our_sessions() {
  std::vector<Session> sessions;
  std::error_code ignored;
  for (const auto& each : fs::directory_iterator(kSessions, ignored)) {
    const fs::path path = each.path();
    if (first_line(path / "ifacename") != kInterface) continue;
    const fs::path connection =
        "/sys/class/iscsi_connection/connection" + path.filename().string().substr(7) + ":0";
    sessions.push_back({path,
                        {first_line(connection / "persistent_address"),
                         static_cast<uint16_t>(std::strtoul(
                             first_line(connection / "persistent_port").c_str(), nullptr, 10)),
                         first_line(path / "targetname")}});
  }
  return sessions;
}

std::optional<Session> find_session(const Key& key) {
  for (Session& session : our_sessions())
    if (session.key == key) return std::move(session);
  return std::nullopt;
}

// Of HOST:CHANNEL:TARGET:LUN, as Linux writes it: with the addressing method of SAM-5 4.7 in the
// two upper bits, which is "flat space" for a large one.
std::optional<uint16_t> lun_of(const std::string& name) {
  const size_t colon = name.rfind(':');
  if (colon == std::string::npos) return std::nullopt;
  const unsigned long number = std::strtoul(name.c_str() + colon + 1, nullptr, 10);
  const unsigned long method = number >> 14;
  if (method > 1) return std::nullopt;
  return static_cast<uint16_t>(number & 0x3fff);
}

// The kernel's names ("sdc") of one logical unit's disk, or of all.
std::vector<std::string> disks_of(const Session& session, std::optional<uint16_t> lun) {
  std::vector<std::string> disks;
  std::error_code ignored;
  for (const auto& target : fs::directory_iterator(session.path / "device", ignored)) {
    if (!target.path().filename().string().starts_with("target")) continue;
    for (const auto& unit : fs::directory_iterator(target.path(), ignored)) {
      const auto number = lun_of(unit.path().filename().string());
      if (!number || (lun && number != lun)) continue;
      for (const auto& disk : fs::directory_iterator(unit.path() / "block", ignored))
        disks.push_back(disk.path().filename().string());
    }
  }
  return disks;
}

// The device node of a logical unit's disk, or "".
std::string node_of(const Session& session, uint16_t lun) {
  for (const std::string& disk : disks_of(session, lun)) {
    std::string node = "/dev/" + disk;
    // There somewhat before the kernel lets it be opened.
    const int fd = open(node.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    const bool not_yet = fd < 0 && (errno == ENOENT || errno == ENXIO || errno == ENODEV);
    if (fd >= 0) close(fd);
    if (!not_yet) return node;
  }
  return {};
}

std::vector<std::string> iscsiadm(const Key& key, const std::vector<std::string>& more) {
  std::vector<std::string> argv = {"iscsiadm", "-m",         "node", "-T",      key.target,
                                   "-p",       key.portal(), "-I",   kInterface};
  argv.insert(argv.end(), more.begin(), more.end());
  return argv;
}

// iscsiadm(8), EXIT STATUS.
[[noreturn]] void login_failed(const Key& key, const ChildResult& result) {
  const std::string said =
      " (iscsiadm: " + last_words(result.err.empty() ? result.out : result.err) + ")";
  switch (result.exit_code) {
    case 4: throw Error(ECONNREFUSED, key.text() + " cannot be connected to" + said);
    case 8:
    case 11: throw Error(ETIMEDOUT, key.text() + " does not answer" + said);
    case 19: throw Error(ENOENT, key.text() + " is not there, or not for this host" + said);
    case 20:
      throw Error(ECONNREFUSED, "iscsid does not answer: start it (systemctl start iscsid)" + said);
    case 24:
      throw Error(EACCES, key.text() +
                              " refuses this host's user or password: see [chap] in "
                              "docs/backings.md, and what the target says of the name in "
                              "/etc/iscsi/initiatorname.iscsi" +
                              said);
    default: throw Error(EIO, key.text() + " cannot be logged in to" + said);
  }
}

IscsiRecordName record_name(const Key& key) { return {key.target, key.host, key.port, kInterface}; }

void delete_records(const Key& key) {
  for (const fs::path& path : find_iscsi_records(kIscsiNodes, record_name(key)))
    delete_iscsi_record(path);
}

// A record with all that iscsid.conf says, of a target that there is not.
std::string record_template(const ChildOptions& options) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  const IscsiRecordName name{"cowd-template-" + std::to_string(getpid()), "127.0.0.1", 3260,
                             kInterface};
  const std::string purpose = "Making a record of open-iscsi failed";
  run_tool(purpose,
           {"iscsiadm", "-m", "node", "-o", "new", "-T", name.target, "-I", kInterface, "-p",
            name.host + ":3260," + std::to_string(kAnyPortalGroup)},
           options);
  const fs::path path = iscsi_record_path(kIscsiNodes, name, kAnyPortalGroup);
  std::ifstream in(path);
  if (!in) throw Error(ENOENT, purpose + ": it is not below " + std::string(kIscsiNodes) + ".");
  std::stringstream text;
  text << in.rdbuf();
  delete_iscsi_record(path);
  return text.str();
}

// A complete one would have to name a transport: what does not is passed over where iscsiadm binds
// what others discover to all interfaces, and taken where it is asked for by name.
void make_interface() {
  const fs::path path = fs::path(kIscsiInterfaces) / kInterface;
  if (access(path.c_str(), F_OK) != 0)
    write_iscsi_record(kIscsiNodes, path,
                       "# BEGIN RECORD\n# Of cowd's sessions; others are not to use it.\n"
                       "iface.iscsi_ifacename = " +
                           std::string(kInterface) + "\n# END RECORD\n");
}

ChildResult try_log_in(const Key& key, Clock::time_point deadline) {
  try {
    return run_child(iscsiadm(key, {"--login"}), {left_until(deadline), {}, {}});
  } catch (const Error& error) {
    if (error.code() != ETIMEDOUT) throw;
    throw Error(ETIMEDOUT, key.text() + " does not answer, and iscsid goes on waiting for it.");
  }
}

// Where an iscsid that is started anew looks for it.
void settle_record(const Key& key, const std::string& record) {
  const auto session = find_session(key);
  if (!session) return;
  const std::string group = first_line(session->path / "tpgt");
  if (group.empty()) return;
  write_iscsi_record(kIscsiNodes,
                     iscsi_record_path(kIscsiNodes, record_name(key), std::atoi(group.c_str())),
                     changed_iscsi_record(record, {{"node.tpgt", group}}));
  delete_iscsi_record(iscsi_record_path(kIscsiNodes, record_name(key), kAnyPortalGroup));
}

void log_in(const Key& key, const BackingSettings& settings, const DiskOptions& options,
            Clock::time_point deadline) {
  delete_records(key);  // of a session that has ended
  ChildResult result;
  std::string record;
  try {
    make_interface();
    record = changed_iscsi_record(record_template({left_until(deadline), {}, {}}),
                                  iscsi_settings(record_name(key), settings.loss_seconds, options));
    write_iscsi_record(kIscsiNodes,
                       iscsi_record_path(kIscsiNodes, record_name(key), kAnyPortalGroup), record);
    result = try_log_in(key, deadline);
  } catch (...) {
    delete_records(key);
    throw;
  }
  constexpr int kExists = 15;
  if (result.ok() || result.exit_code == kExists) {
    settle_record(key, record);
    return;
  }
  delete_records(key);
  login_failed(key, result);
}

// The kernel finds units some time after the login; each is announced in /dev.
std::string wait_for_disk(const Session& session, uint16_t lun, Clock::time_point deadline) {
  const int watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  if (watch >= 0) inotify_add_watch(watch, "/dev", IN_CREATE);
  std::string found;
  while ((found = node_of(session, lun)).empty() && Clock::now() < deadline) {
    pollfd polled{watch, POLLIN, 0};
    poll(&polled, 1, 500);
    char events[4096];
    while (read(watch, events, sizeof events) > 0) {
    }
  }
  if (watch >= 0) close(watch);
  return found;
}

// A claim on the session, by its directory in sysfs: shared by all of this and other processes
// that use it, alone to log out. -1 if that cannot be had now.
int lock_session(const Session& session, int how) {
  const int fd = open(session.path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return -1;
  // Who held it alone may have ended it.
  if (flock(fd, how | LOCK_NB) == 0 && access(session.path.c_str(), F_OK) == 0) return fd;
  close(fd);
  return -1;
}

// By somebody who holds no claim on the session: a dm device that outlived its cowd, a mount.
bool has_open_disk(const Session& session) {
  for (const std::string& disk : disks_of(session, std::nullopt)) {
    const int fd = open(("/dev/" + disk).c_str(), O_RDONLY | O_EXCL | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && errno == EBUSY) return true;
    if (fd >= 0) close(fd);
  }
  return false;
}

// A device on top of one of its disks, of somebody who has no lock: one of device-mapper that
// outlived its cowd. The next cowd takes it up, or its end does.
bool has_holder(const Session& session) {
  std::error_code ignored;
  const auto disks = disks_of(session, std::nullopt);
  return std::any_of(disks.begin(), disks.end(), [&](const std::string& disk) {
    return !fs::is_empty("/sys/block/" + disk + "/holders", ignored) && !ignored;
  });
}

// False where that may come right by itself: iscsid is busy, a program still looks at a new disk.
bool try_log_out(const Key& key) {
  const auto session = find_session(key);
  if (!session || has_holder(*session)) return true;
  const int alone = lock_session(*session, LOCK_EX);
  if (alone < 0) return true;  // its last user does it
  const bool ended = !has_open_disk(*session) &&
                     run_child({"iscsiadm", "-m", "session", "-r", session->id(), "--logout"}).ok();
  close(alone);
  if (ended) delete_records(key);
  return ended;
}

void log_out_if_unused(const Key& key) noexcept {
  try {
    const auto door = door_of(key);
    const std::lock_guard lock(*door);
    for (int tries = 0; tries < kLogOuts && !try_log_out(key); tries++)
      std::this_thread::sleep_for(500ms);
  } catch (const std::exception&) {
    // The next user, or the next start, tries again.
  }
}

std::string identity_text(std::string target, uint16_t lun) {
  // Names of targets do not differ in case alone (RFC 3722).
  for (char& c : target) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return "iscsi:" + target + "/" + std::to_string(lun);
}

}  // namespace

std::shared_ptr<IscsiUnit> IscsiUnit::attach(const Component& component,
                                             const BackingSettings& settings,
                                             const DiskOptions& options) {
  const auto deadline = Clock::now() + kAttach;
  const Key key = key_of(component);
  // Before the lock: where this fails, the unit goes after it, and may log out.
  std::shared_ptr<IscsiUnit> unit(new IscsiUnit(component));
  const auto door = door_of(key);
  std::unique_lock lock(*door, deadline);
  if (!lock) throw Error(ETIMEDOUT, key.text() + " does not answer to somebody else, either.");
  std::optional<Session> session;
  bool is_new = false;
  while (unit->claim_ < 0) {
    session = find_session(key);
    if (!session && Clock::now() < deadline) {
      log_in(key, settings, options, deadline);
      is_new = true;
      session = find_session(key);
    }
    if (session) unit->claim_ = lock_session(*session, LOCK_SH);
    if (unit->claim_ >= 0) break;
    if (Clock::now() >= deadline)
      throw Error(ETIMEDOUT, key.text() + " was logged out of while a disk of it was attached.");
    std::this_thread::sleep_for(100ms);
  }
  unit->path_ = node_of(*session, component.lun);
  if (unit->path_.empty()) {
    // What the target has only since then.
    if (!is_new)
      run_child({"iscsiadm", "-m", "session", "-r", session->id(), "--rescan"},
                {left_until(deadline), {}, {}});
    unit->path_ =
        wait_for_disk(*session, component.lun, std::min(deadline, Clock::now() + kDiskAppears));
  }
  if (unit->path_.empty())
    throw Error(ENXIO, key.text() + " has no disk as its logical unit " +
                           std::to_string(component.lun) + "; see what it exports to this host.");
  return unit;
}

IscsiUnit::IscsiUnit(Component component) : component_(std::move(component)) {}

IscsiUnit::~IscsiUnit() {
  if (claim_ < 0) return;
  close(claim_);
  log_out_if_unused(key_of(component_));
}

void IscsiUnit::release_unused() {
  for (const Session& session : our_sessions()) log_out_if_unused(session.key);
}

std::vector<std::string> IscsiUnit::own_disks() {
  std::vector<std::string> all;
  for (const Session& session : our_sessions())
    for (std::string& disk : disks_of(session, std::nullopt)) all.push_back(std::move(disk));
  return all;
}

std::string iscsi_identity(const Component& component) {
  return identity_text(component.target, component.lun);
}

std::string iscsi_identity(dev_t device) {
  // .../session3/target2:0:0/2:0:0:1/block/sdc
  std::error_code ignored;
  const fs::path disk = fs::canonical(
      "/sys/dev/block/" + std::to_string(major(device)) + ":" + std::to_string(minor(device)),
      ignored);
  const fs::path unit = disk.parent_path().parent_path();
  const fs::path session = unit.parent_path().parent_path();
  const auto lun = lun_of(unit.filename().string());
  if (!lun || !session.filename().string().starts_with("session")) return {};
  const std::string target =
      first_line(session / "iscsi_session" / session.filename() / "targetname");
  return target.empty() ? std::string() : identity_text(target, *lun);
}

}  // namespace cowd
