// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/daemon/journal_sink.hh"

#include <sys/uio.h>
#include <syslog.h>
#include <systemd/sd-journal.h>

#include <array>
#include <boost/log/attributes/value_extraction.hpp>
#include <boost/log/expressions/message.hpp>
#include <string>

#include "cowd/daemon/log.hh"

namespace cowd {

namespace {

int priority(Level level) {
  switch (level) {
    case Level::debug: return LOG_DEBUG;
    case Level::info: return LOG_INFO;
    case Level::warning: return LOG_WARNING;
    case Level::error: break;
  }
  return LOG_ERR;
}

}  // namespace

void JournalBackend::consume(const boost::log::record_view& record) {
  namespace log = boost::log;
  std::array<std::string, 5> fields;
  size_t used = 0;
  auto add = [&](const char* name, const std::string& value) {
    fields[used++] = std::string(name) + "=" + value;
  };
  auto message = log::extract<std::string>("Message", record);
  auto level = log::extract<Level>("Severity", record);
  auto id = log::extract<std::string>("Id", record);
  // In the text too: `journalctl -u cowd | grep ID` is what people do.
  std::string sentence = message ? message.get() : std::string();
  if (id) sentence += " [" + id.get() + "]";
  add("MESSAGE", sentence);
  add("PRIORITY", std::to_string(priority(level ? level.get() : Level::info)));
  add("SYSLOG_IDENTIFIER", "cowd");
  if (auto device = log::extract<std::string>("Device", record)) add("COWD_DEVICE", device.get());
  if (id) add("COWD_ERROR_ID", id.get());

  std::array<iovec, 5> vector;
  for (size_t i = 0; i < used; ++i) vector[i] = {fields[i].data(), fields[i].size()};
  sd_journal_sendv(vector.data(), static_cast<int>(used));
}

}  // namespace cowd
