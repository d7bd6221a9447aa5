// SPDX-License-Identifier: GPL-2.0-or-later
// The commands of docs/control-protocol.md, save `events`, which the server knows.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cowd/daemon/control_server.hh"
#include "cowd/daemon/device_manager.hh"
#include "cowd/daemon/xen_link.hh"

namespace cowd {

// A handler for the server; both must outlive it.
ControlServer::Handler make_commands(DeviceManager& devices, XenLink& xen);

// Of an `attach` request; in a function of its own for the test.
AttachRequest attach_request(JsonArguments& arguments);

}  // namespace cowd
