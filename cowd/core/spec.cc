// SPDX-License-Identifier: GPL-2.0-or-later
// A specification is cut from left to right: the format ends at the first ':', a
// component at the first ':' that is not in its host and port. Nothing is guessed:
// whatever could be read in another way as well is refused.
#include "cowd/core/spec.hh"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>

#include "cowd/core/error.hh"
#include "cowd/core/utf8.hh"

namespace cowd {

namespace {

constexpr uint16_t kNbdPort = 10809;
constexpr uint16_t kIscsiPort = 3260;
constexpr uint16_t kMaxLun = 16383;
constexpr size_t kMaxText = 8192;
constexpr std::string_view kNbd = "nbd://";
constexpr std::string_view kIscsi = "iscsi://";
constexpr std::string_view kTransient = "transient@";

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
bool is_alnum(char c) { return is_digit(c) || is_lower(c) || (c >= 'A' && c <= 'Z'); }

bool all_of(std::string_view text, auto predicate) {
  return std::all_of(text.begin(), text.end(), predicate);
}

int hex_value(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string in_quotes(std::string_view text) { return "'" + std::string(text) + "'"; }

std::string encode(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == ':')
      out += "%3A";
    else if (c == '%')
      out += "%25";
    else
      out += c;
  }
  // It would be the end of a configuration's line.
  if (out.ends_with(' ')) out.replace(out.size() - 1, 1, "%20");
  return out;
}

class Parser {
 public:
  explicit Parser(std::string_view text) : all_(text), rest_(text) {}

  DiskSpec parse() {
    check_text();
    take("dmu:");
    DiskSpec spec;
    if (take("@")) {
      spec.named = name();
      return spec;
    }
    spec.format = format();
    spec.top = component("TOP", true);
    if (!rest_.empty()) {
      take(":");
      spec.base = component("BASE", false);
    }
    if (!rest_.empty())
      refuse("there is a third component, " + in_quotes(rest_.substr(1)) +
             ", after TOP and BASE; a ':' that belongs to a name is written %3A");
    if (spec.base && *spec.base == spec.top)
      refuse("TOP and BASE are the same, so the first write would change the base");
    return spec;
  }

 private:
  [[noreturn]] void refuse(const std::string& why) const {
    // What stands before '@' in a URI may be a password: it is not said again.
    const size_t uri = all_.find("://");
    if (uri != all_.npos && all_.find('@', uri) != all_.npos)
      throw Error(
          EINVAL,
          "This is no disk specification: a URI in it has a user or password, an '@', where "
          "none may be, for guests can read it. They belong into the file of a named disk "
          "(docs/backings.md).");
    throw Error(EINVAL, in_quotes(all_) +
                            " is not a disk specification ([dmu:]FORMAT:TOP[:BASE]): " + why + ".");
  }

  bool take(std::string_view prefix) {
    if (!rest_.starts_with(prefix)) return false;
    rest_.remove_prefix(prefix.size());
    return true;
  }

  std::string_view take_until(std::string_view stops) {
    const auto word = rest_.substr(0, rest_.find_first_of(stops));
    rest_.remove_prefix(word.size());
    return word;
  }

  void check_text() const {
    if (all_.empty())
      throw Error(EINVAL, "The disk specification is empty; give FORMAT:TOP[:BASE].");
    if (all_.size() > kMaxText)
      throw Error(EINVAL, "The disk specification has more than 8192 bytes.");
    if (!is_utf8(all_)) throw Error(EINVAL, "The disk specification is not UTF-8.");
    if (!all_of(all_, [](unsigned char c) { return c >= 0x20 && c != 0x7f; }))
      throw Error(EINVAL, "The disk specification has a control character in it.");
    if (all_.front() == ' ' || all_.back() == ' ')
      refuse("it begins or ends with a space; quote it without");
  }

  std::string name() {
    const std::string_view text = rest_;
    if (text.empty() || !is_alnum(text.front()) ||
        !all_of(text, [](char c) { return is_alnum(c) || c == '_' || c == '-' || c == '.'; }))
      refuse(
          "NAME of @NAME is made of letters, digits, '_', '-' and '.', and begins with a "
          "letter or a digit");
    rest_ = {};
    return std::string(text);
  }

  std::string format() {
    if (rest_.starts_with('/'))
      refuse("it names no FORMAT; write for example raw:" + std::string(rest_));
    for (const auto scheme : {kNbd, kIscsi, kTransient})
      if (rest_.starts_with(scheme))
        refuse("it names no FORMAT; write for example raw:" + std::string(rest_));
    const auto word = take_until(":");
    if (word.empty() || !is_lower(word.front()) || word.size() > 32 ||
        !all_of(word, [](char c) { return is_lower(c) || is_digit(c) || c == '-' || c == '_'; }))
      refuse(
          "FORMAT is " + in_quotes(word) +
          " but must be made of lower-case letters, digits, '-' and '_', and begin with a letter");
    if (word == "dmu") refuse("FORMAT cannot be 'dmu', which is the prefix");
    if (!take(":")) refuse("it names no TOP");
    return std::string(word);
  }

  Component component(const char* role, bool is_top) {
    if (take(kNbd)) return nbd(role);
    if (take(kIscsi)) return iscsi(role);
    if (rest_.starts_with(kTransient)) {
      if (!is_top) refuse("BASE cannot be transient: only TOP is made at attach");
      return transient();
    }
    const auto word = take_until(":");
    if (word.empty()) refuse(std::string(role) + " is empty");
    if (word.front() != '/')
      refuse(std::string(role) + " is " + in_quotes(word) +
             " but must begin with /, nbd:// or iscsi://" +
             (is_top ? ", or be transient@VG or transient@DIRECTORY"
                     : "; a ':' that belongs to TOP is written %3A"));
    Component result;
    result.path = absolute(role, word);
    return result;
  }

  std::string absolute(const char* role, std::string_view word) {
    std::string path = decode(role, word);
    if (path.starts_with("//"))
      refuse(std::string(role) +
             " begins with //: write one slash for a path, or nbd:// or iscsi://");
    if (path.ends_with('/')) refuse(std::string(role) + " ends with /, so it names a directory");
    return path;
  }

  Component nbd(const char* role) {
    Component result;
    result.kind = Component::Kind::nbd;
    authority(role, "/EXPORT", kNbdPort, &result);
    result.export_name = decode(role, take_until(":"));
    return result;
  }

  Component iscsi(const char* role) {
    Component result;
    result.kind = Component::Kind::iscsi;
    authority(role, "/TARGET/LUN", kIscsiPort, &result);
    result.target = decode(role, take_until(":/"));
    if (!result.target.starts_with("iqn.") && !result.target.starts_with("eui.") &&
        !result.target.starts_with("naa."))
      refuse(std::string(role) + " names the iSCSI target " + in_quotes(result.target) +
             " but such a name begins with iqn., eui. or naa.");
    if (result.target.find('/') != std::string::npos)
      refuse(std::string(role) + " names the iSCSI target " + in_quotes(result.target) +
             " but no such name has a /");
    if (!take("/"))
      refuse(std::string(role) +
             " has no /LUN after the iSCSI target; a ':' in the target's name is written %3A");
    result.lun = number(role, "LUN", take_until(":"), kMaxLun);
    return result;
  }

  // host[:port] or [v6][:port], and the slash after it.
  void authority(const char* role, const char* next, uint16_t port, Component* result) {
    const std::string needs = std::string(role) + " needs " + next + " after its host";
    if (take("["))
      result->host = v6(role);
    else
      result->host = host(role);
    result->port = port;
    if (take(":")) {
      const auto digits = take_until(":/");
      if (digits.empty() || !rest_.starts_with('/'))
        refuse(needs + "; without it, what follows ':' could be a port or BASE");
      result->port = number(role, "port", digits, 65535);
      if (result->port == 0) refuse(std::string(role) + " has port 0");
    }
    if (!take("/")) refuse(needs);
  }

  std::string host(const char* role) {
    const auto word = take_until(":/");
    if (word.empty() || word.front() == '-' ||
        !all_of(word, [](char c) { return is_alnum(c) || c == '.' || c == '-'; }))
      refuse(
          std::string(role) + " has the host name " + in_quotes(word) +
          " but such a name is made of letters, digits, '.' and '-'; an IPv6 address stands in []");
    return std::string(word);
  }

  std::string v6(const char* role) {
    const std::string word(take_until("]"));
    unsigned char binary[16];
    if (!take("]") || inet_pton(AF_INET6, word.c_str(), binary) != 1)
      refuse(std::string(role) + " has [" + word + "], which is no IPv6 address");
    return word;
  }

  Component transient() {
    take(kTransient);
    Component result;
    result.kind = Component::Kind::transient;
    const auto word = take_until(":");
    if (word.starts_with('/')) {
      result.pool = word.size() == 1 ? "/" : absolute("TOP", word);
      return result;
    }
    if (word.empty() || word == "." || word == ".." || word.front() == '-' ||
        !all_of(word,
                [](char c) { return is_alnum(c) || c == '+' || c == '_' || c == '.' || c == '-'; }))
      refuse("transient@ needs the name of a volume group or the absolute path of a directory");
    result.pool = word;
    return result;
  }

  uint16_t number(const char* role, const char* what, std::string_view digits, unsigned most) {
    unsigned value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    const bool padded = digits.size() > 1 && digits.front() == '0';
    if (digits.empty() || error != std::errc() || end != digits.data() + digits.size() ||
        value > most || padded)
      refuse(std::string(role) + " has the " + what + " " + in_quotes(digits) +
             ", which is no number from 0 to " + std::to_string(most));
    return static_cast<uint16_t>(value);
  }

  std::string decode(const char* role, std::string_view word) {
    std::string out;
    for (size_t i = 0; i < word.size(); ++i) {
      if (word[i] != '%') {
        out += word[i];
        continue;
      }
      const int high = i + 2 < word.size() ? hex_value(word[i + 1]) : -1;
      const int low = high >= 0 ? hex_value(word[i + 2]) : -1;
      if (low < 0)
        refuse(std::string(role) +
               " has a '%' without two hexadecimal digits; write %25 for the sign");
      const auto c = static_cast<unsigned char>(high << 4 | low);
      if (c < 0x20 || c == 0x7f) refuse(std::string(role) + " has a control character in it");
      out += static_cast<char>(c);
      i += 2;
    }
    if (!is_utf8(out)) refuse(std::string(role) + " is not UTF-8 when its %XX are read");
    return out;
  }

  std::string_view all_;
  std::string_view rest_;
};

std::string authority_text(const Component& c, uint16_t port) {
  const bool v6 = c.host.find(':') != std::string::npos;
  return (v6 ? "[" + c.host + "]" : c.host) + (c.port == port ? "" : ":" + std::to_string(c.port)) +
         "/";
}

}  // namespace

std::string Component::text() const {
  switch (kind) {
    case Kind::nbd:
      return std::string(kNbd) + authority_text(*this, kNbdPort) + encode(export_name);
    case Kind::iscsi:
      return std::string(kIscsi) + authority_text(*this, kIscsiPort) + encode(target) + "/" +
             std::to_string(lun);
    case Kind::transient: return std::string(kTransient) + encode(pool);
    case Kind::path: break;
  }
  return encode(path);
}

std::string DiskSpec::text() const {
  if (!named.empty()) return "@" + named;
  return format + ":" + top.text() + (base ? ":" + base->text() : "");
}

DiskSpec parse_spec(std::string_view text) { return Parser(text).parse(); }

}  // namespace cowd
