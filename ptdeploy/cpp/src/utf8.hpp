// Text in UTF-8, character by character.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace ptdeploy::detail {

// What stands in place of bytes that are no character.
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// The character at a place, which is before the end; where the bytes are none, the longest of them
// that a character could begin with (at least one), and whether it is only the text's end that is
// missing.
struct Utf8Step {
  std::size_t bytes = 0;
  bool whole = false, cut = false;
};
Utf8Step utf8_step(std::string_view text, std::size_t at);

// Whether it is Unicode: no half of a surrogate pair, nothing written longer than it is.
bool is_utf8(std::string_view text);
// With the replacement character for what is none. Source: Rust's String::from_utf8_lossy.
std::string to_utf8(std::string_view bytes);

// Of text that is UTF-8: how many characters it has, and what is left without the first or the last
// ones.
std::size_t characters(std::string_view text);
std::string_view without_first(std::string_view text, std::size_t count);
std::string_view last_characters(std::string_view text, std::size_t count);

// Without blanks of any kind at its end. Source: Python's str.rstrip.
std::string_view without_blanks_behind(std::string_view text);

bool ends_with(std::string_view text, std::string_view end);
// With each `from` replaced by `to`; an empty one stands before, between and behind all characters.
std::string replaced(std::string text, std::string_view from, std::string_view to);

}  // namespace ptdeploy::detail
