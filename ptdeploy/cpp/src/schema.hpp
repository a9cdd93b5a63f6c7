// From a JSON tree to typed fields. Strict, and in the words of ptdeploy's Python reader, which
// are msgspec's: a bundle is refused for one reason, whoever reads it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "json.hpp"

namespace ptdeploy::detail {

class SchemaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A place in the document, as in `$.files[0].role`.
class Where {
 public:
  Where() = default;
  Where member(std::string_view name) const { return Where(this, "." + std::string(name)); }
  Where item(std::size_t index) const { return Where(this, "[" + std::to_string(index) + "]"); }
  Where any() const { return Where(this, "[...]"); }

  [[noreturn]] void fail(const std::string& problem) const;
  [[noreturn]] void expected(const char* type, const Json& got) const;

 private:
  Where(const Where* parent, std::string step) : parent_(parent), step_(std::move(step)) {}
  std::string path() const { return parent_ ? parent_->path() + step_ : "$"; }
  const Where* parent_ = nullptr;
  std::string step_;
};

std::string read_string(const Json& json, const Where& where);
std::int64_t read_int(const Json& json, const Where& where, const char* type = "int");
double read_float(const Json& json, const Where& where, const char* type = "float");
bool read_bool(const Json& json, const Where& where);
// A string that is one of `words`; gives its place among them.
std::size_t read_word(const Json& json, const Where& where, const char* const* words,
                      std::size_t count);
template <std::size_t Count>
std::size_t read_word(const Json& json, const Where& where, const char* const (&words)[Count]) {
  return read_word(json, where, words, Count);
}
const Json::Array& read_items(const Json& json, const Where& where, const char* type = "array");

inline bool is_null(const Json& json) { return std::holds_alternative<std::nullptr_t>(json.value); }

template <class Read>
auto read_array(const Json& json, const Where& where, Read read, const char* type = "array") {
  std::vector<decltype(read(json, where))> out;
  const Json::Array& items = read_items(json, where, type);
  for (std::size_t i = 0; i < items.size(); ++i) out.push_back(read(items[i], where.item(i)));
  return out;
}

// An object's fields. They are read in the document's order, the last of a name wins; then the
// first required one that is missing, in the order given here, is named.
struct Field {
  const char* name;
  bool required;
  std::function<void(const Json&, const Where&)> read;
};
enum class Unknown { refused, skipped };
void read_object(const Json& json, const Where& where, const std::vector<Field>& fields,
                 const char* type = "object", Unknown unknown = Unknown::refused);
// An object of any names; each value is given to `read` with its name.
void read_map(const Json& json, const Where& where,
              const std::function<void(const std::string&, const Json&, const Where&)>& read);
std::vector<std::pair<std::string, std::string>> read_string_map(const Json& json,
                                                                 const Where& where);

// A string as Python's repr() writes it.
std::string quoted(const std::string& text);

}  // namespace ptdeploy::detail
