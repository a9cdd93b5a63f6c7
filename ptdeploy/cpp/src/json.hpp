// A JSON document as a tree that keeps the order of members and those that stand there twice.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace ptdeploy::detail {

struct JsonNumber {
  bool integral = false;  // written without fraction and exponent
  bool fits = false;      // integral, and within 64 bits
  std::int64_t integer = 0;
  double real = 0;
};

struct Json {
  using Array = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;
  std::variant<std::nullptr_t, bool, JsonNumber, std::string, Array, Object> value;

  // "null", "bool", "int", "float", "str", "array" or "object".
  const char* type() const;
};

class JsonError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Strict RFC 8259: UTF-8 only, no comments, no trailing bytes. Throws JsonError with the byte.
Json parse_json(std::string_view text);

}  // namespace ptdeploy::detail
