// SPDX-License-Identifier: GPL-2.0-or-later
// cowctl doctor: what this host still needs. Each check ends in one finding.
#include <utility>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include <fcntl.h>
#include <linux/dm-userspace.h>
#include <nlohmann/json.hpp>
#include <sys/ioctl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "build/config.h"
#include "cowd/core/child.hh"
#include "cowd/core/errno_name.hh"
#include "cowd/core/helper.hh"
#include "cowd/cowctl/commands.hh"
#include "cowd/cowctl/host_settings.hh"
#include "cowd/cowctl/output.hh"

namespace cowctl {

namespace {

namespace fs = std::filesystem;

// ok; advice: works, but not always as one would wish; problem: does not work.
struct Finding {
  const char* result;
  std::string sentence;
  std::string remedy;
};

Finding ok(std::string sentence) { return {"ok", std::move(sentence), ""}; }
Finding advice(std::string sentence, std::string remedy) {
  return {"advice", std::move(sentence), std::move(remedy)};
}
Finding problem(std::string sentence, std::string remedy) {
  return {"problem", std::move(sentence), std::move(remedy)};
}

// --- what the checks are made of ---

std::string read_file(const fs::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// Nothing if there is no such program; one that hangs counts as failed.
std::optional<cowd::ChildResult> ask_host(const std::vector<std::string>& argv) {
  try {
    return cowd::run_child(argv,
                           {.limit = std::chrono::seconds(5), .input = {}, .environment = {}});
  } catch (const Error& e) {
    if (e.code() == ENOENT) return std::nullopt;
    return cowd::ChildResult{};
  }
}

bool is_installed(const std::string& program) {
  for (const char* directory : {"/usr/sbin/", "/usr/bin/", "/sbin/", "/bin/", "/usr/local/sbin/"})
    if (access((directory + program).c_str(), X_OK) == 0) return true;
  return false;
}

bool can_load(const std::string& module) {
  const auto result = ask_host({"modprobe", "-n", "-q", module});
  return result && result->ok();
}

std::string kernel_release() {
  utsname name{};
  uname(&name);
  return name.release;
}

bool on_xen() { return first_line(read_file("/sys/hypervisor/type")) == "xen"; }

bool in_domain_0() {
  return read_file("/proc/xen/capabilities").find("control_d") != std::string::npos;
}

// --- the kernel module ---

// What the loaded module says to a version of the channel's language; an errno.
int ask_module() {
  const int fd = open("/dev/" DMU_DEVICE_NAME, O_RDWR | O_CLOEXEC);
  if (fd < 0) return errno;
  dmu_attach request{};
  request.size = sizeof request;
  request.abi_major = DMU_ABI_MAJOR;
  request.abi_minor = DMU_ABI_MINOR;
  // A key that no device has: the answer is ENODEV, if it is understood.
  snprintf(request.key, sizeof request.key, "cowctl doctor");
  const int code = ioctl(fd, DMU_ATTACH, &request) < 0 ? errno : ENODEV;
  close(fd);
  return code;
}

Finding check_loaded_module() {
  switch (const int code = ask_module()) {
    case ENODEV: return ok("The module dm_userspace is loaded and fits this version.");
    case EPROTO:
    case EINVAL:
      return problem("The module dm_userspace that is loaded is of another version than cowd.",
                     "Load the one that was installed with cowd: reboot, or detach all disks, then "
                     "modprobe -r dm_userspace && modprobe dm_userspace.");
    case EPERM:
    case EACCES:
      return problem("Only root can ask the module dm_userspace for its version.",
                     "Run cowctl doctor as root.");
    default:
      return problem("/dev/" DMU_DEVICE_NAME " cannot be opened: " + cowd::errno_text(code) + ".",
                     "See dmesg, and whether udev runs: udevadm trigger --settle.");
  }
}

Finding check_module(Context&) {
  if (fs::exists("/sys/module/dm_userspace")) return check_loaded_module();
  const std::string release = kernel_release();
  if (!can_load("dm_userspace"))
    return problem("There is no module dm_userspace for the running kernel, " + release + ".",
                   "Install linux-headers-" + release +
                       " and build it: dkms autoinstall, or make install-kmod in the source.");
  return advice("The module dm_userspace is there for " + release + ", and not loaded yet.",
                "modprobe dm_userspace (cowd.service does that, too).");
}

// --- cowd ---

Finding check_cowd(Context& context) {
  json answer;
  try {
    answer = ask_within(context, std::chrono::seconds(5), {{"cmd", "version"}}, "asking cowd");
  } catch (const Error& e) {
    return problem(e.what(), "systemctl enable --now cowd; journalctl -u cowd tells why it ended.");
  }
  const std::string version = answer.value("version", "");
  if (version != DMU_VERSION)
    return problem("cowd " + version + " runs, but cowctl is " DMU_VERSION ".",
                   "systemctl restart cowd; guests see a short pause.");
  if (fs::exists("/run/systemd/system")) {
    const auto enabled = ask_host({"systemctl", "is-enabled", "cowd.service"});
    if (enabled && !enabled->ok())
      return advice("cowd " + version + " runs, and is not started when the host boots.",
                    "systemctl enable cowd.");
  }
  return ok("cowd " + version + " runs.");
}

Finding check_udev(Context&) {
  const std::string rule = "56-dm-userspace.rules";
  for (const char* directory :
       {"/etc/udev/rules.d", "/run/udev/rules.d", "/usr/local/lib/udev/rules.d",
        "/usr/lib/udev/rules.d", "/lib/udev/rules.d"})
    if (const fs::path file = fs::path(directory) / rule; fs::exists(file)) {
      if (fs::file_size(file) == 0)
        return problem(file.string() + " is empty, which turns the installed rule off.",
                       "Remove it, then udevadm control --reload.");
      return ok("udev keeps scanners off cowd's devices (" + file.string() + ").");
    }
  return problem("udev has no rule " + rule +
                     ": blkid reads what guests write, and waits for devices without a cowd.",
                 "Install it to /lib/udev/rules.d, then udevadm control --reload.");
}

// --- LVM ---

std::vector<std::string> names_of(const std::string& node, const std::string& name) {
  return {"/dev/" + node, "/dev/mapper/" + name, "/dev/dmu/" + name};
}

// What cowd serves now, and what it might serve, or have something on, next.
std::vector<std::vector<std::string>> devices_of_cowd() {
  std::vector<std::vector<std::string>> devices = {names_of("dm-999", "dmu-vg-cow")};
  for (const std::string disk : {"loop999", "nbd999"})
    devices.push_back({"/dev/" + disk, "/dev/dmu/" + disk});
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/sys/block", ignored))
    if (first_line(read_file(entry.path() / "dm/uuid")).starts_with("DMU-"))
      devices.push_back(names_of(entry.path().filename().string(),
                                 first_line(read_file(entry.path() / "dm/name"))));
  return devices;
}

Finding check_lvm(Context&) {
  const auto config = ask_host({"lvmconfig", "--typeconfig", "full", "devices"});
  if (!config) return ok("LVM is not installed, so it does not read cowd's devices.");
  if (!config->ok())
    return problem("lvmconfig fails: " + cowd::last_words(config->err), "Correct lvm.conf.");
  // Lines of a section are indented; setting() trims them.
  if (setting(config->out, "use_devicesfile") == "1" &&
      fs::exists("/etc/lvm/devices/" +
                 setting(config->out, "devicesfile").value_or("system.devices")))
    return ok("LVM reads only the devices of its devices file.");
  const auto global = lvm_strings(config->out, "global_filter");
  const auto local = lvm_strings(config->out, "filter");
  for (const auto& names : devices_of_cowd()) {
    if (!lvm_reads(global, names) || !lvm_reads(local, names)) continue;
    const std::string sentence =
        "LVM reads devices such as " + names[1] +
        ": it finds guests' volumes, and hangs on a device that no cowd serves.";
    const auto line = lvm_filter_line(global, names);
    if (!line)
      return problem(sentence, "A pattern of devices/global_filter in /etc/lvm/lvm.conf accepts " +
                                   names[0] + " or " + names[1] +
                                   "; narrow it, and begin the list with \"r|^/dev/dmu/|\".");
    return problem(sentence,
                   "Put this line into the section devices { } of /etc/lvm/lvm.conf:\n" + *line);
  }
  return ok("LVM does not read cowd's devices.");
}

// --- backings over the network ---

// What cowd asks of open-iscsi and of the kernel's nbd driver, whatever their own settings say.
std::string patience() {
  const std::string file = COWD_SYSCONF_DIR "/cowd.toml";
  const auto after = backing_loss_timeout(read_file(file), file);
  return after ? "guests get errors " + *after + " after a server was lost " +
                     "(devices.backing_loss_timeout)"
               : "guests wait for ever for a server that is lost (devices.on_backing_loss)";
}

Finding with_patience(const std::string& sentence) {
  try {
    return ok(sentence + "; " + patience() + ".");
  } catch (const Error& e) {
    return problem(e.what(), "cowd --check-config says whether it is right then.");
  }
}

Finding check_iscsi(Context&) {
  if (!is_installed("iscsiadm"))
    return advice("open-iscsi is not installed: disks on iscsi:// cannot be attached.",
                  "apt-get install open-iscsi, if they are wanted.");
  return with_patience("open-iscsi is there");
}

Finding check_nbd(Context&) {
  try {
    cowd::helper_path("cowd-nbd");
  } catch (const Error& e) {
    return problem(e.what(), "make install does; disks on nbd:// cannot be attached without it.");
  }
  if (!fs::exists("/sys/module/nbd") && !can_load("nbd"))
    return advice("The running kernel, " + kernel_release() +
                      ", has no module nbd: disks on nbd:// cannot be attached.",
                  "Boot a kernel that has it, if they are wanted.");
  return with_patience("cowd-nbd and the module nbd are there");
}

// --- Xen ---

Finding check_xenstore(Context&) {
  const auto result = ask_host({"xenstore-exists", "/local/domain"});
  if (!result)
    return problem("xenstore-exists is not installed, and so block-dmu cannot work.",
                   "apt-get install xenstore-utils.");
  if (!result->ok())
    return problem("xenstored does not answer.", "systemctl start xen; see journalctl -u xen.");
  return ok("xenstored answers.");
}

Finding check_hotplug(Context&) {
  const fs::path directory = XEN_SCRIPT_DIR;
  const fs::path script = directory / "block-dmu";
  if (!fs::exists(directory / "block-common.sh"))
    return problem(directory.string() + " has no block-common.sh, on which block-dmu builds.",
                   "apt-get install xen-utils-common.");
  if (access(script.c_str(), X_OK) != 0)
    return problem("xl does not find block-dmu: there is no program " + script.string() + ".",
                   "Install it there; make install does.");
  const std::string cowctl = setting(read_file(script), "cowctl").value_or("");
  if (access(cowctl.c_str(), X_OK) != 0)
    return problem(script.string() + " calls " + cowctl + ", which is not there.",
                   "Install both from the same source.");
  return ok("xl finds block-dmu.");
}

Finding check_xendomains(Context&) {
  const std::string file = "/etc/default/xendomains";
  const std::string text = read_file(file);
  const std::string save = setting(text, "XENDOMAINS_SAVE").value_or("");
  if (save.empty() || !fs::exists("/etc/init.d/xendomains"))
    return ok("Guests are not saved when the host goes down.");
  return advice(
      "xendomains saves guests to " + save +
          " when the host goes down; the stores of transient ones are kept until they "
          "are back.",
      "XENDOMAINS_SAVE= in " + file + ", if they are to be shut down and to start afresh.");
}

struct Check {
  const char* name;
  Finding (*run)(Context&);
  bool xen_only = false;
};

constexpr Check kChecks[] = {{"kernel module", check_module},
                             {"cowd", check_cowd},
                             {"udev", check_udev},
                             {"LVM", check_lvm},
                             {"iSCSI", check_iscsi},
                             {"nbd", check_nbd},
                             {"xenstored", check_xenstore, true},
                             {"block-dmu", check_hotplug, true},
                             {"xendomains", check_xendomains, true}};

void print(const Context& context, const char* name, const Finding& finding) {
  if (context.options.quiet && std::string(finding.result) == "ok") return;
  std::cout << finding.result << std::string(9 - std::string(finding.result).size(), ' ') << name
            << ": " << finding.sentence << '\n';
  std::istringstream lines(finding.remedy);
  for (std::string line; std::getline(lines, line);) std::cout << "           " << line << '\n';
}

}  // namespace

int run_doctor(Context& context) {
  const bool xen = on_xen() && in_domain_0();
  json checks = json::array();
  bool fine = true;
  for (const Check& check : kChecks) {
    if (check.xen_only && !xen) continue;
    const Finding finding = check.run(context);
    fine = fine && std::string(finding.result) != "problem";
    if (!context.options.json) print(context, check.name, finding);
    checks.push_back({{"name", check.name},
                      {"result", finding.result},
                      {"message", finding.sentence},
                      {"remedy", finding.remedy}});
  }
  if (context.options.json)
    print_json(std::cout, {{"ok", fine}, {"xen", xen}, {"checks", checks}});
  else if (!xen)
    context.say("This host is no domain 0 of Xen, whose needs were not looked at.");
  return fine ? 0 : 1;
}

}  // namespace cowctl
