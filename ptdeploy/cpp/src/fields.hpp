// What manifest.json and engine.json have in common: fields into places, and fields checked only.
#pragma once

#include <optional>
#include <type_traits>

#include "schema.hpp"

namespace ptdeploy::detail {

template <class T>
auto into(T& place, T (*read)(const Json&, const Where&)) {
  return [&place, read](const Json& json, const Where& where) { place = read(json, where); };
}

inline auto into(std::string& place) { return into(place, read_string); }
inline auto into(bool& place) { return into(place, read_bool); }
inline auto into(std::int64_t& place) {
  return [&place](const Json& json, const Where& where) { place = read_int(json, where); };
}
inline auto into(double& place) {
  return [&place](const Json& json, const Where& where) { place = read_float(json, where); };
}

template <class Read>
auto array_into(std::vector<std::invoke_result_t<Read, const Json&, const Where&>>& place,
                Read read) {
  return [&place, read](const Json& json, const Where& where) {
    place = read_array(json, where, read);
  };
}

// An object of any names, in the document's order; the last of a name wins, in the first's place.
template <class T>
auto map_into(std::vector<std::pair<std::string, T>>& place, T (*read)(const Json&, const Where&)) {
  return [&place, read](const Json& json, const Where& where) {
    place.clear();
    read_map(json, where, [&](const std::string& name, const Json& value, const Where& at) {
      T found = read(value, at);
      for (auto& [key, one] : place)
        if (key == name) return static_cast<void>(one = std::move(found));
      place.emplace_back(name, std::move(found));
    });
  };
}

inline std::int64_t number(const Json& json, const Where& where) { return read_int(json, where); }

inline std::optional<std::int64_t> number_or_null(const Json& json, const Where& where) {
  if (is_null(json)) return std::nullopt;
  return read_int(json, where, "int | null");
}

inline std::optional<std::string> string_or_null(const Json& json, const Where& where) {
  if (is_null(json)) return std::nullopt;
  if (auto* text = std::get_if<std::string>(&json.value)) return *text;
  where.expected("str | null", json);
}

// Checked as the Python reader does, and not kept.
inline void skip_string(const Json& json, const Where& where) { read_string(json, where); }
inline void skip_int(const Json& json, const Where& where) { read_int(json, where); }
inline void skip_int_or_null(const Json& json, const Where& where) { number_or_null(json, where); }
inline void skip_float(const Json& json, const Where& where) { read_float(json, where); }
inline void skip_bool(const Json& json, const Where& where) { read_bool(json, where); }
inline void skip_string_map(const Json& json, const Where& where) { read_string_map(json, where); }

}  // namespace ptdeploy::detail
