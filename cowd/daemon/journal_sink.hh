// SPDX-License-Identifier: GPL-2.0-or-later
// A Boost.Log backend that writes to systemd's journal, with the fields
// COWD_DEVICE and COWD_ERROR_ID for `journalctl COWD_ERROR_ID=e-5f3a90c1`.
#pragma once

#include <boost/log/core/record_view.hpp>
#include <boost/log/sinks/basic_sink_backend.hpp>
#include <boost/log/sinks/frontend_requirements.hpp>

namespace cowd {

class JournalBackend
    : public boost::log::sinks::basic_sink_backend<boost::log::sinks::synchronized_feeding> {
 public:
  // Blocks while journald does; called from the sink's own thread.
  void consume(const boost::log::record_view& record);
};

}  // namespace cowd
