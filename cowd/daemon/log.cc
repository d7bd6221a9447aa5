// SPDX-License-Identifier: GPL-2.0-or-later
// The library of Debian has it; the macro only shows it in the header.
#define BOOST_LOG_USE_NATIVE_SYSLOG 1

#include "cowd/daemon/log.hh"

#include <atomic>
#include <boost/log/attributes/clock.hpp>
#include <boost/log/attributes/constant.hpp>
#include <boost/log/core.hpp>
#include <boost/log/expressions.hpp>
#include <boost/log/keywords/severity.hpp>
#include <boost/log/sinks/async_frontend.hpp>
#include <boost/log/sinks/bounded_fifo_queue.hpp>
#include <boost/log/sinks/syslog_backend.hpp>
#include <boost/log/sinks/text_ostream_backend.hpp>
#include <boost/log/sources/record_ostream.hpp>
#include <boost/log/sources/severity_logger.hpp>
#include <boost/log/support/date_time.hpp>
#include <boost/log/utility/manipulators/add_value.hpp>
#include <boost/make_shared.hpp>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>
#include <mutex>
#include <utility>

#include "cowd/core/error.hh"
#include "cowd/daemon/journal_sink.hh"
#include "cowd/daemon/text.hh"

namespace cowd {

namespace {

namespace expr = boost::log::expressions;
namespace sinks = boost::log::sinks;

std::atomic<Level> current_level{Level::info};
std::atomic<uint64_t> dropped{0};

// Boost.Log's drop_on_overflow, with a count.
class CountedDrop {
 public:
  template <typename Lock>
  static bool on_overflow(const boost::log::record_view&, Lock&) {
    dropped.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  static void on_queue_space_available() {}
  static void interrupt() {}
};

template <typename Backend>
using Sink = sinks::asynchronous_sink<Backend, sinks::bounded_fifo_queue<kLogQueue, CountedDrop>>;

// A sink of any kind, to be closed.
struct OpenSink {
  boost::shared_ptr<sinks::sink> sink;
  std::function<void()> stop;
};

std::mutex sinks_mutex;
std::vector<OpenSink> open_sinks;

void format_line(const boost::log::record_view& record, boost::log::formatting_ostream& out) {
  static const auto time = expr::stream << expr::format_date_time<boost::posix_time::ptime>(
                               "TimeStamp", "%Y-%m-%dT%H:%M:%S.%fZ");
  time(record, out);
  if (auto level = boost::log::extract<Level>("Severity", record))
    out << ' ' << level_name(level.get());
  if (auto device = boost::log::extract<std::string>("Device", record))
    out << " [" << device.get() << ']';
  out << ' ' << record[expr::smessage];
  if (auto id = boost::log::extract<std::string>("Id", record)) out << " (" << id.get() << ')';
}

template <typename Backend>
OpenSink start(boost::shared_ptr<Backend> backend, bool text) {
  auto sink = boost::make_shared<Sink<Backend>>(backend);
  if constexpr (!std::is_same_v<Backend, JournalBackend>)
    if (text) sink->set_formatter(&format_line);
  return {sink, [sink] {
            sink->stop();
            sink->flush();
          }};
}

OpenSink open_console() {
  auto backend = boost::make_shared<sinks::text_ostream_backend>();
  backend->add_stream(boost::shared_ptr<std::ostream>(&std::clog, [](std::ostream*) {}));
  backend->auto_flush(true);
  return start(backend, true);
}

OpenSink open_file(const std::string& path) {
  auto stream = boost::make_shared<std::ofstream>(path, std::ios::app);
  if (!*stream) {
    int code = errno;
    throw Error(code, text("The log file ", path, " cannot be opened: ", std::strerror(code),
                           ". Correct log.file in the configuration, or take \"file\" out of "
                           "log.targets."));
  }
  auto backend = boost::make_shared<sinks::text_ostream_backend>();
  backend->add_stream(stream);
  backend->auto_flush(true);
  return start(backend, true);
}

OpenSink open_syslog() {
  namespace syslog = sinks::syslog;
  auto backend = boost::make_shared<sinks::syslog_backend>(
      boost::log::keywords::facility = syslog::daemon,
      boost::log::keywords::use_impl = syslog::native, boost::log::keywords::ident = "cowd");
  syslog::custom_severity_mapping<Level> mapping("Severity");
  mapping[Level::debug] = syslog::debug;
  mapping[Level::info] = syslog::info;
  mapping[Level::warning] = syslog::warning;
  mapping[Level::error] = syslog::error;
  backend->set_severity_mapper(mapping);
  return start(backend, true);
}

OpenSink open_target(LogTarget target, const LogSettings& settings) {
  switch (target) {
    case LogTarget::file: return open_file(settings.file);
    case LogTarget::journald: return start(boost::make_shared<JournalBackend>(), false);
    case LogTarget::syslog: return open_syslog();
    case LogTarget::console: break;
  }
  return open_console();
}

void close_sinks(std::vector<OpenSink>& list) {
  for (auto& open : list) {
    boost::log::core::get()->remove_sink(open.sink);
    open.stop();
  }
  list.clear();
}

void write_record(Level level, std::string_view sentence, LogContext context) {
  static boost::log::sources::severity_logger_mt<Level> logger;
  namespace attrs = boost::log::attributes;
  auto record = logger.open_record(boost::log::keywords::severity = level);
  if (!record) return;
  auto add = [&](const char* name, std::string_view value) {
    if (!value.empty())
      record.attribute_values().insert(name, attrs::make_constant(std::string(value)).get_value());
  };
  add("Device", context.device);
  add("Id", context.id);
  boost::log::record_ostream out(record);
  out << sentence;
  out.flush();
  logger.push_record(std::move(record));
}

// Says once how much was lost, when the queue takes records again.
void tell_of_drops() {
  static std::atomic<uint64_t> told{0};
  uint64_t now = dropped.load(std::memory_order_relaxed);
  uint64_t before = told.load(std::memory_order_relaxed);
  if (now == before || !told.compare_exchange_strong(before, now)) return;
  write_record(Level::warning,
               text(now - before,
                    " log records were dropped because they came faster than they "
                    "could be written."),
               {});
}

}  // namespace

std::string_view level_name(Level level) {
  switch (level) {
    case Level::debug: return "debug";
    case Level::info: return "info";
    case Level::warning: return "warning";
    case Level::error: break;
  }
  return "error";
}

std::optional<Level> level_from_name(std::string_view name) {
  for (Level level : {Level::debug, Level::info, Level::warning, Level::error})
    if (level_name(level) == name) return level;
  return std::nullopt;
}

std::optional<LogTarget> log_target_from_name(std::string_view name) {
  if (name == "console") return LogTarget::console;
  if (name == "file") return LogTarget::file;
  if (name == "journald") return LogTarget::journald;
  if (name == "syslog") return LogTarget::syslog;
  return std::nullopt;
}

void open_log(const LogSettings& settings) {
  std::lock_guard lock(sinks_mutex);
  auto core = boost::log::core::get();
  std::vector<OpenSink> fresh;
  try {
    for (LogTarget target : settings.targets) fresh.push_back(open_target(target, settings));
  } catch (...) {
    for (auto& open : fresh) open.stop();
    throw;
  }
  static bool clock_added = false;
  if (!std::exchange(clock_added, true))
    core->add_global_attribute("TimeStamp", boost::log::attributes::utc_clock());
  close_sinks(open_sinks);
  for (auto& open : fresh) core->add_sink(open.sink);
  open_sinks = std::move(fresh);
  set_log_level(settings.level);
}

void close_log() {
  std::lock_guard lock(sinks_mutex);
  // Without any sink Boost.Log writes to the console by itself.
  boost::log::core::get()->set_logging_enabled(false);
  close_sinks(open_sinks);
}

void set_log_level(Level level) { current_level.store(level, std::memory_order_relaxed); }

Level log_level() { return current_level.load(std::memory_order_relaxed); }

void log(Level level, std::string_view sentence, LogContext context) {
  if (level < log_level()) return;
  write_record(level, sentence, context);
  tell_of_drops();
}

uint64_t log_dropped() { return dropped.load(std::memory_order_relaxed); }

}  // namespace cowd
