#include "json.hpp"

#include <charconv>
#include <limits>
#include <locale>
#include <sstream>

namespace ptdeploy::detail {
namespace {

// Deeper than any file of a bundle; keeps a hostile one from using up a small thread's stack.
constexpr int kMaxDepth = 64;

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json document() {
    Json json = value(0);
    space();
    if (at_ != text_.size()) fail("trailing characters");
    return json;
  }

 private:
  [[noreturn]] void fail(const std::string& reason) const {
    throw JsonError("JSON is malformed: " + reason + " (byte " + std::to_string(at_) + ")");
  }

  unsigned char peek() const {
    if (at_ == text_.size()) throw JsonError("Input data was truncated");
    return static_cast<unsigned char>(text_[at_]);
  }

  unsigned char take() {
    unsigned char byte = peek();
    ++at_;
    return byte;
  }

  void space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
      ++at_;
  }

  void expect(char wanted, const char* reason) {
    if (peek() != static_cast<unsigned char>(wanted)) fail(reason);
    ++at_;
  }

  Json value(int depth) {
    if (depth > kMaxDepth) fail("nested too deeply");
    space();
    switch (peek()) {
      case '{':
        return {object(depth)};
      case '[':
        return {array(depth)};
      case '"':
        return {string()};
      case 't':
        word("true");
        return {true};
      case 'f':
        word("false");
        return {false};
      case 'n':
        word("null");
        return {nullptr};
      default:
        return {number()};
    }
  }

  void word(std::string_view wanted) {
    for (char letter : wanted) expect(letter, "invalid character");
  }

  Json::Array array(int depth) {
    Json::Array items;
    ++at_;
    space();
    if (peek() == ']') return ++at_, items;
    while (true) {
      items.push_back(value(depth + 1));
      space();
      if (peek() == ']') return ++at_, items;
      expect(',', "expected ',' or ']'");
    }
  }

  Json::Object object(int depth) {
    Json::Object members;
    ++at_;
    space();
    if (peek() == '}') return ++at_, members;
    while (true) {
      space();
      if (peek() != '"') fail("object keys must be strings");
      std::string key = string();
      space();
      expect(':', "expected ':'");
      members.emplace_back(std::move(key), value(depth + 1));
      space();
      if (peek() == '}') return ++at_, members;
      expect(',', "expected ',' or '}'");
    }
  }

  std::string string() {
    std::string out;
    ++at_;
    while (true) {
      unsigned char byte = take();
      if (byte == '"') return out;
      if (byte == '\\') {
        escape(out);
      } else if (byte < 0x20) {
        --at_;
        fail("invalid character");
      } else if (byte < 0x80) {
        out.push_back(static_cast<char>(byte));
      } else {
        --at_;
        utf8(out);
      }
    }
  }

  void escape(std::string& out) {
    static constexpr std::string_view kLetters = "\"\\/bfnrt", kMeaning = "\"\\/\b\f\n\r\t";
    unsigned char letter = take();
    if (letter == 'u') {
      std::uint32_t code = hex4();
      if (code >= 0xDC00 && code < 0xE000) fail("invalid utf-16 surrogate pair");
      if (code >= 0xD800 && code < 0xDC00) {
        expect('\\', "unexpected end of escaped utf-16 surrogate pair");
        expect('u', "unexpected end of escaped utf-16 surrogate pair");
        std::uint32_t low = hex4();
        if (low < 0xDC00 || low >= 0xE000) fail("invalid utf-16 surrogate pair");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      }
      append(out, code);
      return;
    }
    auto place = kLetters.find(static_cast<char>(letter));
    if (place == std::string_view::npos) fail("invalid escape character in string");
    out.push_back(kMeaning[place]);
  }

  std::uint32_t hex4() {
    std::uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      unsigned char digit = take();
      code <<= 4;
      if (digit >= '0' && digit <= '9')
        code += digit - '0';
      else if (digit >= 'a' && digit <= 'f')
        code += digit - 'a' + 10;
      else if (digit >= 'A' && digit <= 'F')
        code += digit - 'A' + 10;
      else
        fail("invalid character in unicode escape");
    }
    return code;
  }

  static void append(std::string& out, std::uint32_t code) {
    if (code < 0x80) {
      out.push_back(static_cast<char>(code));
      return;
    }
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static constexpr unsigned char kLead[] = {0, 0xC0, 0xE0, 0xF0};
    out.push_back(static_cast<char>(kLead[more] | (code >> (6 * more))));
    while (more-- > 0) out.push_back(static_cast<char>(0x80 | ((code >> (6 * more)) & 0x3F)));
  }

  // One character of two to four bytes: no overlong form, no surrogate, nothing past U+10FFFF.
  void utf8(std::string& out) {
    unsigned char lead = peek();
    int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
    if (lead < 0xC2 || lead > 0xF4) fail("invalid UTF-8");
    std::uint32_t code = lead & (0x3F >> more);
    std::size_t begin = at_++;
    for (int i = 0; i < more; ++i) {
      unsigned char byte = take();
      if ((byte & 0xC0) != 0x80) fail("invalid UTF-8");
      code = (code << 6) | (byte & 0x3F);
    }
    static constexpr std::uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
    if (code < kLeast[more] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
      fail("invalid UTF-8");
    out.append(text_.substr(begin, at_ - begin));
  }

  bool digit() const { return at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; }

  void digits() {
    if (!digit()) {
      peek();
      fail("invalid number");
    }
    while (digit()) ++at_;
  }

  JsonNumber number() {
    std::size_t begin = at_;
    if (peek() == '-') ++at_;
    if (!digit()) fail(at_ == begin ? "invalid character" : "invalid number");
    if (text_[at_] == '0') {
      ++at_;
      if (digit()) fail("invalid number");
    } else {
      digits();
    }
    JsonNumber number;
    number.integral = true;
    if (at_ < text_.size() && text_[at_] == '.') {
      number.integral = false;
      ++at_;
      digits();
    }
    if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
      number.integral = false;
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    std::string_view written = text_.substr(begin, at_ - begin);
    const char* end = written.data() + written.size();
    if (number.integral)
      number.fits = std::from_chars(written.data(), end, number.integer).ec == std::errc();
    number.real = real(written);
    return number;
  }

  // Not strtod: that follows the program's locale. Past the largest double gives infinity.
  static double real(std::string_view written) {
    std::istringstream stream{std::string(written)};
    stream.imbue(std::locale::classic());
    double value = 0;
    stream >> value;
    if (stream.fail() && (value == std::numeric_limits<double>::max() ||
                          value == std::numeric_limits<double>::lowest()))
      value = std::numeric_limits<double>::infinity();
    return value;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

const char* Json::type() const {
  static constexpr const char* kNames[] = {"null", "bool", "", "str", "array", "object"};
  if (auto* number = std::get_if<JsonNumber>(&value)) return number->integral ? "int" : "float";
  return kNames[value.index()];
}

Json parse_json(std::string_view text) { return Parser(text).document(); }

}  // namespace ptdeploy::detail
