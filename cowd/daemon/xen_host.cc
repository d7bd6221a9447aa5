// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/xen_host.hh"

#include <dlfcn.h>

#include <cerrno>
#include <filesystem>
#include <fstream>

#include "cowd/core/error.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace {

std::string first_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

const XenDescriptor& load(const std::string& path) {
  void* object = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!object) {
    const char* why = dlerror();
    throw Error(ENOEXEC, text(path, " cannot be loaded: ", why ? why : "?",
                              ". Install the libraries of the Xen that runs."));
  }
  const auto* xen = static_cast<const XenDescriptor*>(dlsym(object, "cowd_xen"));
  if (!xen || xen->abi != kXenAbi || xen->size != sizeof(XenDescriptor))
    throw Error(ENOEXEC,
                text(path, " is not of this cowd. Install the one that came with it."));
  return *xen;
}

}  // namespace

bool xen_is_here() {
  // /proc/xen would say it too, but is not to be seen behind systemd's ProtectProc=.
  return first_line("/sys/hypervisor/type") == "xen" &&
         first_line("/sys/hypervisor/uuid") == "00000000-0000-0000-0000-000000000000";
}

std::unique_ptr<XenHost> open_xen(const std::vector<std::string>& directories) {
  const std::string version = text(first_line("/sys/hypervisor/version/major"), ".",
                                   first_line("/sys/hypervisor/version/minor"));
  for (const std::string& directory : directories) {
    const std::string path = text(directory, "/xen/", version, ".so");
    std::error_code ignored;
    if (std::filesystem::exists(path, ignored))
      return load(std::filesystem::absolute(path)).open();
  }
  throw Error(ENOENT, text("cowd has nothing to talk to Xen ", version,
                           " with: disks of domains are not served. Install the package of cowd "
                           "that was built for this Xen."));
}

}  // namespace cowd
