// Other people's words in what is printed: ptdeploy/printable.py in C++.
#include <array>
#include <cstdint>
#include <cstdio>

#include "ptdeploy/ptdeploy.hpp"

namespace ptdeploy {
namespace {

// The character at `at`, and how many bytes it has; none where the bytes are no UTF-8.
struct Character {
  std::uint32_t code = 0;
  std::size_t bytes = 0;
};

Character character_at(const std::string& text, std::size_t at) {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const std::uint32_t first = byte(at);
  if (first < 0x80) return {first, 1};
  const std::size_t bytes = first >= 0xF8 ? 0 : first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC0 || bytes == 0) return {};
  std::uint32_t code = first & (0x7Fu >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    if ((byte(at + i) & 0xC0) != 0x80) return {};
    code = code << 6 | (byte(at + i) & 0x3F);
  }
  static constexpr std::array<std::uint32_t, 5> kLeast{0, 0, 0x80, 0x800, 0x10000};
  if (code < kLeast[bytes] || code > 0x10FFFF) return {};
  return {code, bytes};
}

// Controls, what turns the direction of writing, and what other readers end a line at.
bool acts(std::uint32_t code, bool lines) {
  const auto from = [code](std::uint32_t first, std::uint32_t last) {
    return code >= first && code <= last;
  };
  if (lines && (code == '\t' || code == '\n')) return false;
  return code < 0x20 || from(0x7F, 0x9F) || code == 0x61C || from(0x200E, 0x200F) ||
         from(0x2028, 0x202E) || from(0x2066, 0x2069) || from(0xD800, 0xDFFF) ||
         from(0xFFFE, 0xFFFF);
}

std::string escaped(std::uint32_t code) {
  if (code == '\t') return "\\t";
  if (code == '\n') return "\\n";
  if (code == '\r') return "\\r";
  char out[16];
  std::snprintf(out, sizeof out, code < 0x100 ? "\\x%02x" : "\\u%04x", static_cast<unsigned>(code));
  return out;
}

}  // namespace

std::string printable(const std::string& text, bool lines) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const Character found = character_at(text, at);
    if (found.bytes == 0) {
      // A terminal that knows no UTF-8 takes such a byte for a control.
      out += escaped(static_cast<unsigned char>(text[at++]));
      continue;
    }
    if (acts(found.code, lines))
      out += escaped(found.code);
    else
      out.append(text, at, found.bytes);
    at += found.bytes;
  }
  return out;
}

}  // namespace ptdeploy
