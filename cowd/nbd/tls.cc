// SPDX-License-Identifier: GPL-2.0-or-later
#include "cowd/nbd/tls.hh"

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "cowd/core/errno_name.hh"
#include "cowd/core/error.hh"

#ifndef TCP_ULP
#define TCP_ULP 31
#endif
#ifndef SOL_TLS
#define SOL_TLS 282
#endif

namespace cowd::nbd {

namespace {

std::string words_of(int error) {
  std::string words = gnutls_strerror(error);
  while (words.ends_with('.')) words.pop_back();
  return words;
}

// What the kernel can go on with.
constexpr const char* kPriority =
    "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-CIPHER-ALL:+AES-256-GCM:+AES-128-GCM";

void check_key_file(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0)
    throw system_error(errno, "Reading the TLS key " + path + " failed");
  if (info.st_uid != geteuid() || (info.st_mode & (S_IRWXG | S_IRWXO)) != 0)
    throw Error(EPERM, "Others than root may read or write the TLS key " + path +
                           "; say chown root and chmod 600 on it.");
}

}  // namespace

struct Tls::Session {
  gnutls_certificate_credentials_t credentials = nullptr;
  gnutls_session_t session = nullptr;
  ~Session() {
    if (session) gnutls_deinit(session);
    if (credentials) gnutls_certificate_free_credentials(credentials);
  }
};

Tls::Tls(int fd, const TlsSettings& settings, const std::string& host, std::string where,
         std::function<void(short)> wait)
    : fd_(fd),
      where_(std::move(where)),
      wait_(std::move(wait)),
      known_(!settings.key.empty()),
      session_(std::make_unique<Session>()) {
  auto& [credentials, session] = *session_;
  int error = gnutls_certificate_allocate_credentials(&credentials);
  if (error < 0) failed(error, "cannot be talked to");
  error = settings.ca.empty() ? gnutls_certificate_set_x509_system_trust(credentials)
                              : gnutls_certificate_set_x509_trust_file(
                                    credentials, settings.ca.c_str(), GNUTLS_X509_FMT_PEM);
  if (error <= 0)
    throw Error(ENOENT, "No certificate of an authority is to be had from " +
                            (settings.ca.empty() ? "what this host trusts" : settings.ca) +
                            (error < 0 ? ": " + words_of(error) : "") +
                            ". Name one by ca in [tls].");
  if (known_) {
    check_key_file(settings.key);
    error = gnutls_certificate_set_x509_key_file(credentials, settings.certificate.c_str(),
                                                 settings.key.c_str(), GNUTLS_X509_FMT_PEM);
    if (error < 0)
      throw Error(EINVAL, "The certificate " + settings.certificate + " and the key " +
                              settings.key + " cannot be used: " + words_of(error) + ".");
  }
  error = gnutls_init(&session,
                      GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL | GNUTLS_NO_AUTO_REKEY);
  if (error >= 0) error = gnutls_priority_set_direct(session, kPriority, nullptr);
  if (error >= 0) error = gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, credentials);
  if (error < 0) failed(error, "cannot be talked to");
  const std::string& name = settings.server_name.empty() ? host : settings.server_name;
  gnutls_server_name_set(session, GNUTLS_NAME_DNS, name.c_str(), name.size());
  gnutls_session_set_verify_cert(session, name.c_str(), 0);
  gnutls_transport_set_int(session, fd_);
  error = insist([&] { return gnutls_handshake(session); });
  if (error == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR) {
    gnutls_datum_t why{};
    gnutls_certificate_verification_status_print(gnutls_session_get_verify_cert_status(session),
                                                 GNUTLS_CRT_X509, &why, 0);
    const std::string text = why.data ? reinterpret_cast<const char*>(why.data) : "";
    gnutls_free(why.data);
    throw Error(EPERM, where_ + " does not prove to be '" + name + "': " + text +
                           " See ca and server_name in [tls].");
  }
  if (error < 0) failed(error, "does not agree on TLS");
}

Tls::~Tls() = default;

// Until the call is done, or has failed for good.
template <typename Call>
int Tls::insist(Call call) {
  for (;;) {
    const auto result = static_cast<int>(call());
    if (result == GNUTLS_E_AGAIN)
      wait_(gnutls_record_get_direction(session_->session) ? POLLOUT : POLLIN);
    else if (result >= 0 || gnutls_error_is_fatal(result))
      return result;
  }
}

void Tls::failed(int error, const char* doing) const {
  std::string why = words_of(error);
  if (error == GNUTLS_E_FATAL_ALERT_RECEIVED) {
    const char* alert = gnutls_alert_get_name(gnutls_alert_get(session_->session));
    why = "it says '" + std::string(alert ? alert : "?") + "'";
  }
  throw Error(EPROTO, where_ + " " + doing + ": " + why +
                          (known_ ? ". See" : "; if it wants to know this host, see") +
                          " certificate and key in [tls], and the server's log.");
}

size_t Tls::read(void* to, size_t size) {
  const int count = insist([&] { return gnutls_record_recv(session_->session, to, size); });
  if (count < 0) failed(count, "breaks off");
  return static_cast<size_t>(count);
}

size_t Tls::write(const void* from, size_t size) {
  const int count = insist([&] { return gnutls_record_send(session_->session, from, size); });
  if (count < 0) failed(count, "breaks off");
  return static_cast<size_t>(count);
}

// The nonce of a record is, in TLS 1.3, what was agreed on with the record's number in it
// (RFC 8446, 5.3); in 1.2, four bytes that were agreed on and eight that the sender chooses
// (RFC 5288, 3), for which the kernel counts on from the number of the record.
template <typename Info>
void Tls::give_keys(int direction, int version, int cipher) {
  gnutls_datum_t mac{}, iv{}, key{};
  unsigned char number[8];
  const int error =
      gnutls_record_get_state(session_->session, direction == TLS_RX, &mac, &iv, &key, number);
  if (error < 0) failed(error, "cannot be talked to by the kernel");
  Info info{};
  info.info.version = static_cast<uint16_t>(version);
  info.info.cipher_type = static_cast<uint16_t>(cipher);
  const bool whole = version == TLS_1_3_VERSION;
  if (key.size != sizeof info.key || iv.size < sizeof info.salt + (whole ? sizeof info.iv : 0))
    throw Error(EPROTO, where_ + " agreed on keys of an unexpected size.");
  memcpy(info.key, key.data, sizeof info.key);
  memcpy(info.salt, iv.data, sizeof info.salt);
  memcpy(info.iv, whole ? iv.data + sizeof info.salt : number, sizeof info.iv);
  memcpy(info.rec_seq, number, sizeof info.rec_seq);
  const int status = setsockopt(fd_, SOL_TLS, direction, &info, sizeof info);
  const int code = errno;
  explicit_bzero(&info, sizeof info);
  if (status != 0)
    throw system_error(code, "Giving the keys of the TLS connection to the kernel failed");
}

void Tls::hand_over() {
  gnutls_session_t session = session_->session;
  if (gnutls_record_check_pending(session) > 0)
    throw Error(EPROTO, where_ + " says more than it was asked.");
  if (setsockopt(fd_, IPPROTO_TCP, TCP_ULP, "tls", sizeof "tls") != 0)
    throw Error(ENOTSUP, "The kernel cannot do TLS (" + errno_text(errno) +
                             "): load its module tls, CONFIG_TLS.");
  const int version =
      gnutls_protocol_get_version(session) == GNUTLS_TLS1_3 ? TLS_1_3_VERSION : TLS_1_2_VERSION;
  for (const int direction : {TLS_TX, TLS_RX}) {
    if (gnutls_cipher_get(session) == GNUTLS_CIPHER_AES_256_GCM)
      give_keys<tls12_crypto_info_aes_gcm_256>(direction, version, TLS_CIPHER_AES_GCM_256);
    else
      give_keys<tls12_crypto_info_aes_gcm_128>(direction, version, TLS_CIPHER_AES_GCM_128);
  }
}

}  // namespace cowd::nbd
