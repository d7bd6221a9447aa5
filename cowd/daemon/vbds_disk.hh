// SPDX-License-Identifier: GPL-2.0-or-later
// What vbds.cc and vbds_end.cc share, and nobody else sees.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "cowd/daemon/vbd_node.hh"
#include "cowd/daemon/vbds.hh"

namespace cowd {

// As XenStore has it.
struct Vbds::Node {
  std::string path;
  std::string params;
  std::string vdev;
  std::string domain;
  std::string vm_uuid;
  bool read_only = false;
};

struct Vbds::Disk {
  enum class State { attaching, ready, leaving };
  std::string device;  // empty while it is attaching
  std::string uuid;    // of the device, not of one of that name before or after it
  DomainNote note;
  bool read_only = false;
  bool transient = false;
  bool saved = false;  // its store is that of a saved domain, which has not run since
  State state = State::attaching;
  std::set<std::string> given;  // of its nodes those whose add was answered, or may have been
  bool orderly = false;         // it leaves, nobody keeps it, and its users still finish
  bool marking = false;         // its store is being marked as saved, or as not
  bool watched = false;         // until_it_goes_on() runs
};

// Of the VM's domains the one that a node is of; null: gone.
inline const XenDomain* domain_of(const std::vector<XenDomain>& domains, const std::string& node,
                                  const std::string& vm_uuid) {
  const unsigned id = domid_of(node);
  for (const XenDomain& domain : domains)
    if (domain.id == id && domain.uuid == vm_uuid) return &domain;
  return nullptr;
}

// Whether the domain that a node is of goes on. Domain 0 does as long as we do.
inline bool lives(const std::vector<XenDomain>& domains, const std::string& node,
                  const std::string& vm_uuid) {
  if (domid_of(node) == 0) return true;
  const XenDomain* domain = domain_of(domains, node, vm_uuid);
  return domain && !domain->dying;
}

// Whether what has this node still uses its disk. Of domain 0, which does not die, the node
// goes, or is on its way out by the toolstack's word.
inline bool has_user(XenHost& host, const std::vector<XenDomain>& domains, const std::string& node,
                     const std::string& vm_uuid) {
  if (!host.read(node + "/params")) return false;
  if (domid_of(node) == 0) return host.read(node + "/online").value_or("1") != "0";
  return lives(domains, node, vm_uuid);
}

}  // namespace cowd
