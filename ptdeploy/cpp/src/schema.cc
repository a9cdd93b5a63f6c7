#include "schema.hpp"

#include <algorithm>
#include <cmath>

namespace ptdeploy::detail {

void Where::fail(const std::string& problem) const {
  throw SchemaError(parent_ ? problem + " - at `" + path() + "`" : problem);
}

void Where::expected(const char* type, const Json& got) const {
  fail(std::string("Expected `") + type + "`, got `" + got.type() + "`");
}

std::string read_string(const Json& json, const Where& where) {
  if (auto* text = std::get_if<std::string>(&json.value)) return *text;
  where.expected("str", json);
}

std::int64_t read_int(const Json& json, const Where& where, const char* type) {
  auto* number = std::get_if<JsonNumber>(&json.value);
  if (!number) where.expected(type, json);
  if (!number->integral && std::isinf(number->real)) where.fail("Number out of range");
  if (!number->integral) where.expected(type, json);
  if (!number->fits) where.fail("Integer value out of range");
  return number->integer;
}

double read_float(const Json& json, const Where& where, const char* type) {
  auto* number = std::get_if<JsonNumber>(&json.value);
  if (!number) where.expected(type, json);
  if (std::isinf(number->real)) where.fail("Number out of range");
  return number->real;
}

bool read_bool(const Json& json, const Where& where) {
  if (auto* flag = std::get_if<bool>(&json.value)) return *flag;
  where.expected("bool", json);
}

std::size_t read_word(const Json& json, const Where& where, const char* const* words,
                      std::size_t count) {
  const std::string word = read_string(json, where);
  const auto* found = std::find(words, words + count, word);
  if (found == words + count) where.fail("Invalid enum value " + quoted(word));
  return static_cast<std::size_t>(found - words);
}

const Json::Array& read_items(const Json& json, const Where& where, const char* type) {
  if (auto* items = std::get_if<Json::Array>(&json.value)) return *items;
  where.expected(type, json);
}

void read_object(const Json& json, const Where& where, const std::vector<Field>& fields,
                 const char* type, Unknown unknown) {
  auto* members = std::get_if<Json::Object>(&json.value);
  if (!members) where.expected(type, json);
  std::vector<bool> seen(fields.size());
  for (const auto& [name, value] : *members) {
    auto found = std::find_if(fields.begin(), fields.end(),
                              [&name = name](const Field& field) { return name == field.name; });
    if (found != fields.end()) {
      seen[static_cast<std::size_t>(found - fields.begin())] = true;
      found->read(value, where.member(name));
    } else if (unknown == Unknown::refused) {
      where.fail("Object contains unknown field `" + name + "`");
    }
  }
  for (std::size_t i = 0; i < fields.size(); ++i)
    if (fields[i].required && !seen[i])
      where.fail(std::string("Object missing required field `") + fields[i].name + "`");
}

void read_map(const Json& json, const Where& where,
              const std::function<void(const std::string&, const Json&, const Where&)>& read) {
  auto* members = std::get_if<Json::Object>(&json.value);
  if (!members) where.expected("object", json);
  for (const auto& [name, value] : *members) read(name, value, where.any());
}

std::vector<std::pair<std::string, std::string>> read_string_map(const Json& json,
                                                                 const Where& where) {
  std::vector<std::pair<std::string, std::string>> map;
  read_map(json, where, [&map](const std::string& name, const Json& value, const Where& at) {
    map.emplace_back(name, read_string(value, at));
  });
  return map;
}

std::string quoted(const std::string& text) {
  bool has_single = text.find('\'') != std::string::npos;
  char quote = has_single && text.find('"') == std::string::npos ? '"' : '\'';
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out(1, quote);
  for (char letter : text) {
    auto byte = static_cast<unsigned char>(letter);
    if (letter == quote || letter == '\\')
      out += std::string("\\") + letter;
    else if (letter == '\n')
      out += "\\n";
    else if (letter == '\r')
      out += "\\r";
    else if (letter == '\t')
      out += "\\t";
    else if (byte < 0x20 || byte == 0x7F)
      out += std::string("\\x") + kHex[byte >> 4] + kHex[byte & 15];
    else
      out += letter;
  }
  return out + quote;
}

}  // namespace ptdeploy::detail
