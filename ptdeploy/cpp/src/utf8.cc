#include "utf8.hpp"

#include <algorithm>

namespace ptdeploy::detail {
namespace {

unsigned byte_at(std::string_view text, std::size_t at) {
  return static_cast<unsigned char>(text[at]);
}

// How many bytes a character has that begins with this one; 0: none does.
std::size_t bytes_of_character(unsigned first) {
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return 0;
  return first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

// Whether the second byte of a character may be this one: no surrogates, nothing written longer than
// it is, nothing past U+10FFFF.
bool may_follow(unsigned first, unsigned second) {
  const unsigned least = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const unsigned most = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  return second >= least && second <= most;
}

bool continues(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

}  // namespace

Utf8Step utf8_step(std::string_view text, std::size_t at) {
  const unsigned first = byte_at(text, at);
  const std::size_t length = bytes_of_character(first);
  if (length <= 1) return {1, length == 1, false};
  for (std::size_t i = 1; i < length; ++i) {
    if (at + i == text.size()) return {i, false, true};
    const unsigned next = byte_at(text, at + i);
    if (i == 1 ? !may_follow(first, next) : (next & 0xC0) != 0x80) return {i, false, false};
  }
  return {length, true, false};
}

bool is_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    if (!step.whole) return false;
    at += step.bytes;
  }
  return true;
}

std::string to_utf8(std::string_view bytes) {
  std::string out;
  for (std::size_t at = 0; at < bytes.size();) {
    const Utf8Step step = utf8_step(bytes, at);
    out += step.whole ? bytes.substr(at, step.bytes) : kReplacement;
    at += step.bytes;
  }
  return out;
}

std::size_t characters(std::string_view text) {
  return text.size() - static_cast<std::size_t>(std::count_if(text.begin(), text.end(), continues));
}

std::string_view without_first(std::string_view text, std::size_t count) {
  std::size_t at = 0;
  for (; count > 0 && at < text.size(); --count) at += utf8_step(text, at).bytes;
  return text.substr(at);
}

std::string_view last_characters(std::string_view text, std::size_t count) {
  const std::size_t all = characters(text);
  return count < all ? without_first(text, all - count) : text;
}

std::string_view without_blanks_behind(std::string_view text) {
  static constexpr std::string_view kBlanks[] = {
      "\t", "\n", "\v", "\f", "\r", "\x1c", "\x1d", "\x1e", "\x1f", " ", "\u0085", "\u00a0",
      "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006", "\u2007",
      "\u2008", "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"};
  const auto ends = [&text](std::string_view blank) { return ends_with(text, blank); };
  for (;;) {
    const auto* blank = std::find_if(std::begin(kBlanks), std::end(kBlanks), ends);
    if (blank == std::end(kBlanks)) return text;
    text.remove_suffix(blank->size());
  }
}

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  if (from.empty()) {
    std::string out(to);
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t size = utf8_step(text, at).bytes;
      out.append(text, at, size).append(to);
      at += size;
    }
    return out;
  }
  for (std::size_t at = text.find(from); at != std::string::npos;
       at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
  return text;
}

}  // namespace ptdeploy::detail
