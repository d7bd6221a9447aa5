// SPDX-License-Identifier: GPL-2.0-or-later
// JSON as the control protocol and cowctl use it.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "cowd/core/error.hh"
#include "formats/plugin.hh"

namespace cowd {

// The arguments of one request: typed, and refused by name (EINVAL) when missing,
// mistyped or, by done(), when nobody asked for them.
class JsonArguments {
 public:
  // `object` must outlive this. `where` names it in sentences: "attach".
  JsonArguments(const nlohmann::json& object, std::string where);

  std::string need_string(const std::string& key);
  std::optional<std::string> string(const std::string& key);
  std::optional<uint64_t> number(const std::string& key);
  bool flag(const std::string& key, bool fallback);
  const nlohmann::json* object(const std::string& key);  // null if absent
  void done() const;

 private:
  const nlohmann::json* find(const std::string& key);

  const nlohmann::json& object_;
  std::string where_;
  std::set<std::string> asked_;
};

// What cowd refused, as its client sees it. what() ends with the id, if there is one.
class Refusal : public Error {
 public:
  Refusal(int code, const std::string& sentence, std::string id, std::string public_sentence)
      : Error(code, sentence), id_(std::move(id)), public_(std::move(public_sentence)) {}
  const std::string& id() const { return id_; }
  // What the guest whose disk it is may read; empty where cowd gave no such sentence.
  const std::string& public_sentence() const { return public_; }

 private:
  std::string id_;
  std::string public_;
};

// {"errno": "EBUSY", "message": ...} and "id" where there is one.
nlohmann::json error_to_json(const Error& error, const std::string& id = {});
Refusal error_from_json(const nlohmann::json& object);

// An array in qemu-img map's schema; neighbours that continue each other are merged.
nlohmann::json map_to_json(const std::vector<MapEntry>& entries);

const char* durability_name(Durability durability);
Durability durability_by_name(const std::string& name);  // Error(EINVAL)

}  // namespace cowd
