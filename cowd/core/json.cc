// SPDX-License-Identifier: GPL-2.0-or-later
#include <utility>

#include "cowd/core/json.hh"

#include <nlohmann/json.hpp>

#include "cowd/core/errno_name.hh"

namespace cowd {

using nlohmann::json;

namespace {

constexpr uint64_t kSector = 512;

// Whether b goes on where a ends, and says the same of its run.
bool continues(const MapEntry& a, const MapEntry& b) {
  return a.range.end() == b.range.sector && a.depth == b.depth && a.present == b.present &&
         a.zero == b.zero && a.data == b.data && a.compressed == b.compressed && !a.compressed &&
         a.disk == b.disk && a.has_offset == b.has_offset &&
         (!a.has_offset || a.offset + a.range.len * kSector == b.offset);
}

json entry_to_json(const MapEntry& entry) {
  json object = {{"start", entry.range.sector * kSector},
                 {"length", entry.range.len * kSector},
                 {"depth", entry.depth},
                 {"present", entry.present},
                 {"zero", entry.zero},
                 {"data", entry.data},
                 {"compressed", entry.compressed}};
  if (entry.has_offset) object["offset"] = entry.offset;
  if (!entry.disk.empty()) object["filename"] = entry.disk;
  return object;
}

}  // namespace

JsonArguments::JsonArguments(const json& object, std::string where)
    : object_(object), where_(std::move(where)) {
  if (!object.is_object()) throw Error(EINVAL, where_ + " needs a JSON object.");
}

const json* JsonArguments::find(const std::string& key) {
  asked_.insert(key);
  const auto at = object_.find(key);
  return at == object_.end() || at->is_null() ? nullptr : &*at;
}

std::string JsonArguments::need_string(const std::string& key) {
  if (auto value = string(key)) return *std::move(value);
  throw Error(EINVAL, where_ + " needs the argument '" + key + "'.");
}

std::optional<std::string> JsonArguments::string(const std::string& key) {
  const json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_string())
    throw Error(EINVAL, "The argument '" + key + "' of " + where_ + " must be a string.");
  return value->get<std::string>();
}

std::optional<uint64_t> JsonArguments::number(const std::string& key) {
  const json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_number_integer() || (!value->is_number_unsigned() && value->get<int64_t>() < 0))
    throw Error(EINVAL, "The argument '" + key + "' of " + where_ +
                            " must be a whole number, not less than 0.");
  return value->get<uint64_t>();
}

bool JsonArguments::flag(const std::string& key, bool fallback) {
  const json* value = find(key);
  if (!value) return fallback;
  if (!value->is_boolean())
    throw Error(EINVAL, "The argument '" + key + "' of " + where_ + " must be true or false.");
  return value->get<bool>();
}

const json* JsonArguments::object(const std::string& key) {
  const json* value = find(key);
  if (value && !value->is_object())
    throw Error(EINVAL, "The argument '" + key + "' of " + where_ + " must be an object.");
  return value;
}

void JsonArguments::done() const {
  for (const auto& [key, value] : object_.items())
    if (!asked_.contains(key)) throw Error(EINVAL, where_ + " has no argument '" + key + "'.");
}

json error_to_json(const Error& error, const std::string& id) {
  json object = {{"errno", errno_name(error.code())}, {"message", error.what()}};
  if (!id.empty()) object["id"] = id;
  return object;
}

Refusal error_from_json(const json& object) {
  const auto text = [&](const char* key) {
    return object.is_object() && object.contains(key) && object[key].is_string()
               ? object[key].get<std::string>()
               : std::string();
  };
  std::string message = text("message");
  if (message.empty()) message = "cowd refused without saying why.";
  const std::string id = text("id");
  if (!id.empty()) message += " [" + id + "]";
  return Refusal(errno_by_name(text("errno")), message, id, text("public"));
}

json map_to_json(const std::vector<MapEntry>& entries) {
  json array = json::array();
  for (size_t i = 0; i < entries.size();) {
    MapEntry run = entries[i];
    for (++i; i < entries.size() && continues(run, entries[i]); ++i)
      run.range.len += entries[i].range.len;
    array.push_back(entry_to_json(run));
  }
  return array;
}

const char* durability_name(Durability durability) {
  switch (durability) {
    case Durability::always: return "always";
    case Durability::transient: return "transient";
    case Durability::flush: break;
  }
  return "flush";
}

Durability durability_by_name(const std::string& name) {
  for (const auto durability : {Durability::flush, Durability::always, Durability::transient})
    if (name == durability_name(durability)) return durability;
  throw Error(EINVAL, "The durability is '" + name + "' but must be flush, always or transient.");
}

}  // namespace cowd
