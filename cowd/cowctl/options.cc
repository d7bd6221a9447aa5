// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/cowctl/options.hh"

#include <CLI/CLI.hpp>
#include <iostream>

#include "build/config.h"
#include "cowd/core/control_client.hh"
#include "cowd/core/error.hh"

namespace cowctl {

namespace {

constexpr const char* kDevice =
    "a device's name, its path below /dev/mapper, or the specification it was attached by";
constexpr const char* kSpec = "disk specification, FORMAT:TOP[:BASE] or @NAME";

class CommandLine {
 public:
  CommandLine() : app_("Makes, serves and inspects disks of cowd.", "cowctl") {
    app_.require_subcommand(1);
    app_.set_help_flag("-h,--help", "say what there is and exit");
    app_.set_version_flag("-V,--version", std::string("cowctl ") + DMU_VERSION,
                          "print cowctl's version and exit");
    app_.add_flag("--json", o_.json, "print JSON");
    app_.add_flag("-q,--quiet", o_.quiet, "print errors only");
    app_.add_flag("--progress", o_.progress, "show progress even if stderr is no terminal");
    app_.add_option("--socket", o_.socket, "cowd's control socket")
        ->type_name("PATH")
        ->default_str(cowd::kControlSocket);
    app_.add_option("--plugin-dir", o_.plugin_dirs, "where to look for format plugins first")
        ->type_name("DIR")
        ->allow_extra_args(false);
    app_.footer(
        "Options that stand before a command may stand after it too.\n"
        "cowctl COMMAND --help tells a command's own. The manual: cowctl(8).");
    add_offline_commands();
    add_chain_commands();
    add_attach();
    add_device_commands();
    add_daemon_commands();
    add_xen_commands();
  }

  Parsed parse(int argc, const char* const* argv) {
    try {
      app_.parse(argc, argv);
    } catch (const CLI::ParseError& e) {
      if (e.get_exit_code() == 0) {
        app_.exit(e, std::cout, std::cerr);
        return {o_, true};
      }
      throw cowd::Error(EINVAL, sentence(unknown_command(argc, argv).value_or(e.what())));
    }
    if (o_.socket.empty()) o_.socket = cowd::kControlSocket;
    o_.command = app_.get_subcommands().front()->get_name();
    return {o_, false};
  }

 private:
  CLI::App* command(const std::string& name, const std::string& what) {
    CLI::App* sub = app_.add_subcommand(name, what);
    sub->fallthrough();
    sub->set_help_flag("-h,--help", "say what there is and exit");
    return sub;
  }

  CLI::Option* target(CLI::App* sub, const char* name, const char* what) {
    return sub->add_option(name, o_.target, what)->type_name("")->required();
  }

  void add_offline_commands() {
    CLI::App* create = command("create", "make an image");
    target(create, "SPEC", kSpec);
    create->add_option("SIZE", o_.size, "of the disk, such as 10G; default: that of BASE")
        ->type_name("");
    create->add_option("-o", o_.create_options, "an option of the format; -o help lists them")
        ->type_name("NAME=VALUE")
        ->delimiter(',')
        ->allow_extra_args(false);
    create->add_flag("--force", o_.force, "overwrite what looks like data");

    CLI::App* info = command("info", "describe an image, or an attached device");
    target(info, "SPEC|DEVICE", kDevice);

    CLI::App* map = command("map", "show where the data of each range is");
    target(map, "SPEC|DEVICE", kDevice);
    map->add_option("--start-offset", o_.start_offset, "begin there")->type_name("OFFSET");
    map->add_option("--max-length", o_.max_length, "no more than this")->type_name("LENGTH");

    CLI::App* check = command("check", "check an image that is not attached");
    target(check, "SPEC", kSpec);
    check->add_flag("--repair", o_.repair, "repair what can be repaired");
    check->add_flag("-U,--force-share", o_.force_share,
                    "check what is in use, without repair; findings may be passing states");
    add_snapshot();
    add_resize();
  }

  void add_snapshot() {
    CLI::App* snapshot = command("snapshot", "list, make, go back to or delete snapshots");
    snapshot->add_flag("-l,--list", o_.snapshot_list, "list them (the default)");
    const auto name = [&](const char* option, std::optional<std::string>& to, const char* what) {
      snapshot->add_option(option, to, what)->type_name("NAME");
    };
    name("-c,--create", o_.snapshot_create, "keep the disk as it is now under this name");
    name("-a,--apply", o_.snapshot_apply, "make the disk as it was then; what it has now is lost");
    name("-d,--delete", o_.snapshot_delete, "delete one");
    target(snapshot, "SPEC", kSpec);
  }

  void add_resize() {
    CLI::App* resize = command("resize", "make a disk larger or smaller");
    target(resize, "SPEC", kSpec);
    resize->add_option("SIZE", o_.size, "to be, or +SIZE or -SIZE: more or less than it is")
        ->type_name("")
        ->required();
    resize->add_flag("--shrink", o_.shrink, "make it smaller: what is behind the new end is lost");
  }

  void add_chain_commands() {
    CLI::App* compare = command("compare", "tell whether two images hold the same disk");
    target(compare, "SPEC", kSpec);
    compare->add_option("OTHER", o_.other, "the same, of the second image")
        ->type_name("")
        ->required();
    compare->add_flag("-s,--strict", o_.strict, "sizes and what is allocated must be the same too");
    compare->add_flag("-U,--force-share", o_.force_share, "compare also what is in use");

    CLI::App* commit = command("commit", "write what an image holds into its base");
    target(commit, "SPEC", kSpec);
    commit->add_flag("-d,--keep", o_.keep, "do not empty the image afterwards");

    CLI::App* rebase = command("rebase", "let an image lie on another base");
    target(rebase, "SPEC", kSpec);
    rebase->add_option("-b,--backing-file", o_.backing_file, "the new base; '' for none")
        ->type_name("FILE")
        ->required();
    rebase->add_option("-F,--backing-format", o_.backing_format, "its format")->type_name("FORMAT");
    rebase->add_flag("-u,--unsafe", o_.unsafe,
                     "only change the name; the new base must read as the old one");
  }

  void add_attach() {
    CLI::App* attach = command("attach", "serve a disk as a device");
    target(attach, "SPEC", kSpec);
    attach->add_option("--name", o_.name, "of the device; default: made from SPEC")
        ->type_name("NAME");
    attach->add_option("--durability", o_.durability, "flush, always or transient")
        ->type_name("MODE")
        ->check(CLI::IsMember({"flush", "always", "transient"}));
    attach->add_flag("--read-only", o_.read_only, "never write to it");
    attach
        ->add_option("--no-daemon", o_.no_daemon,
                     "what I/O does while no cowd is there: queue or fail")
        ->type_name("MODE")
        ->check(CLI::IsMember({"queue", "fail"}));
    attach->add_option("--no-daemon-seconds", o_.no_daemon_seconds, "after how long it fails")
        ->type_name("SECONDS");
    attach->add_option("--max-extents", o_.max_extents, "the most extents the kernel keeps")
        ->type_name("N");
    target(command("detach", "commit, stop serving and remove a device"), "DEVICE", kDevice);
  }

  void add_device_commands() {
    command("list", "list the attached devices");
    CLI::App* stats = command("stats", "show counters of all devices or of one");
    stats->add_option("DEVICE", o_.target, kDevice)->type_name("");
    target(command("pause", "commit and suspend a device"), "DEVICE", kDevice);
    target(command("resume", "let a paused device go on"), "DEVICE", kDevice);
  }

  void add_daemon_commands() {
    CLI::App* events = command("events", "show what has happened");
    events->add_flag("--follow", o_.follow, "and what happens, until interrupted");
    events->add_option("--since", o_.since, "only events after this number")->type_name("NUMBER");
    command("version", "print the versions of cowctl, cowd and their interfaces");
    CLI::App* level = command("log-level", "set how much cowd logs");
    level->add_option("LEVEL", o_.level, "error, warning, info or debug")
        ->type_name("")
        ->required();
  }

  void add_xen_commands() {
    CLI::App* vbd = command("vbd", "list the disks of Xen guests; attach or let go of one");
    vbd->add_option("ACTION", o_.action, "list (the default), add or remove")
        ->type_name("")
        ->check(CLI::IsMember({"list", "add", "remove"}).description(""));
    vbd->add_option("PATH", o_.path, "the disk's node in XenStore, backend/vbd/DOMID/DEVID")
        ->type_name("");
    vbd->add_option("--timeout", o_.timeout_seconds, "give up after this")
        ->type_name("SECONDS")
        ->check(CLI::Range(1, 3600).description(""));
    vbd->add_flag("--public", o_.public_sentence,
                  "on failure, also print a sentence that the guest may read");
    command("doctor", "say what this host still needs");
    command("stores", "list the stores that cowd made for transient disks");
    target(command("delete", "remove the store of a saved guest"), "STORE",
           "a store's UUID, as stores prints it");
  }

  // CLI11 only says that it found no command; what stands in its place is more help.
  std::optional<std::string> unknown_command(int argc, const char* const* argv) const {
    if (!app_.get_subcommands().empty()) return std::nullopt;
    for (int i = 1; i < argc; ++i) {
      const std::string word = argv[i];
      if (word == "--socket" || word == "--plugin-dir")
        ++i;
      else if (!word.starts_with('-'))
        return "there is no command '" + word + "'";
    }
    return std::nullopt;
  }

  // What CLI11 says as one line, with the way to learn more.
  std::string sentence(std::string what) const {
    for (char& c : what)
      if (c == '\n') c = ' ';
    while (!what.empty() && (what.back() == '.' || what.back() == ' ')) what.pop_back();
    const auto used = app_.get_subcommands();
    return what + "; see cowctl " + (used.empty() ? "" : used.front()->get_name() + " ") +
           "--help.";
  }

  CLI::App app_;
  Options o_;
};

}  // namespace

Parsed parse_command_line(int argc, const char* const* argv) {
  return CommandLine().parse(argc, argv);
}

}  // namespace cowctl
