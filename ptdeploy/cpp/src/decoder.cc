#include "decoder.hpp"

#include <algorithm>
#include <array>
#include <map>

#include "utf8.hpp"

namespace ptdeploy::detail {
namespace {

using Stage = DecoderStage;
using Tokens = std::vector<std::string>;

std::string in_one(const Tokens& tokens) {
  std::string all;
  for (const std::string& token : tokens) all += token;
  return all;
}

// The byte that each letter of a byte-level token stands for. Printable bytes stand for themselves;
// the others, in order, are the letters from U+0100 on. Source: GPT-2's bytes_to_unicode.
std::map<std::string_view, char> letters_of_bytes() {
  static const std::array<std::string, 256> kLetters = [] {
    std::array<std::string, 256> letters;
    unsigned others = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool shown = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      const unsigned code = shown ? byte : others++;
      letters[byte] = code < 0x80 ? std::string(1, static_cast<char>(code))
                                  : std::string{static_cast<char>(0xC0 | code >> 6),
                                                static_cast<char>(0x80 | (code & 0x3F))};
    }
    return letters;
  }();
  std::map<std::string_view, char> bytes;
  for (std::size_t byte = 0; byte < kLetters.size(); ++byte)
    bytes[kLetters[byte]] = static_cast<char>(byte);
  return bytes;
}

// A token that has another letter is text as it is.
void byte_level(const Stage&, Tokens& tokens) {
  static const std::map<std::string_view, char> kBytes = letters_of_bytes();
  std::string bytes;
  for (const std::string& token : tokens) {
    std::string spelt;
    for (std::size_t at = 0; at < token.size();) {
      const std::size_t size = utf8_step(token, at).bytes;
      const auto found = kBytes.find(std::string_view(token).substr(at, size));
      if (found == kBytes.end()) {
        spelt = token;
        break;
      }
      spelt += found->second;
      at += size;
    }
    bytes += spelt;
  }
  tokens = {to_utf8(bytes)};
}

void word_piece(const Stage& stage, Tokens& tokens) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    std::string& token = tokens[i];
    if (i > 0) {
      if (token.compare(0, stage.text.size(), stage.text) == 0)
        token.erase(0, stage.text.size());
      else
        token.insert(0, " ");
    }
    if (stage.flag) token = tidied(std::move(token), true);
  }
}

void metaspace(const Stage& stage, Tokens& tokens) {
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = replaced(std::move(tokens[i]), stage.text, i == 0 && stage.flag ? "" : " ");
}

void word_ends(const Stage& stage, Tokens& tokens) {
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = replaced(std::move(tokens[i]), stage.text, i + 1 == tokens.size() ? "" : " ");
}

void replace(const Stage& stage, Tokens& tokens) {
  for (std::string& token : tokens) token = replaced(std::move(token), stage.text, stage.content);
}

// The byte in <0xAB>, or nothing; a sign counts as a digit, as in Rust's from_str_radix.
std::string byte_in(const std::string& token) {
  if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token.back() != '>') return "";
  const auto digit = [](char one) {
    const std::string_view digits = "0123456789abcdef";
    const char lower = one >= 'A' && one <= 'F' ? static_cast<char>(one + ('a' - 'A')) : one;
    return digits.find(lower);
  };
  const std::size_t high = token[3] == '+' ? 0 : digit(token[3]), low = digit(token[4]);
  if (high > 15 || low > 15) return "";
  return std::string(1, static_cast<char>(high << 4 | low));
}

void byte_fallback(const Stage&, Tokens& tokens) {
  Tokens out;
  std::string run;
  const auto end_run = [&] {
    if (is_utf8(run))
      out.push_back(run);
    else
      out.insert(out.end(), run.size(), std::string(kReplacement));
    run.clear();
  };
  for (std::string& token : tokens) {
    const std::string byte = byte_in(token);
    run += byte;
    if (!byte.empty()) continue;
    if (!run.empty()) end_run();
    out.push_back(std::move(token));
  }
  if (!run.empty()) end_run();
  tokens = std::move(out);
}

void fuse(const Stage&, Tokens& tokens) { tokens = {in_one(tokens)}; }

void strip(const Stage& stage, Tokens& tokens) {
  for (std::string& token : tokens) {
    std::string_view rest = token;
    const std::string_view one = stage.content;
    for (std::int64_t i = 0; i < stage.start && rest.substr(0, one.size()) == one; ++i)
      rest.remove_prefix(one.size());
    std::string_view behind = token;
    for (std::int64_t i = 0; i < stage.stop; ++i) {
      if (behind.empty()) throw SchemaError("a token is shorter than what is stripped of it");
      if (!ends_with(behind, one)) break;
      behind.remove_suffix(one.size());
    }
    const std::size_t both = rest.size() + behind.size();
    if (both < token.size()) throw SchemaError("a token is stripped of more than it has");
    token = std::string(rest.substr(0, both - token.size()));
  }
}

void ctc(const Stage& stage, Tokens& tokens) {
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  Tokens out;
  for (std::string& token : tokens) {
    token = replaced(std::move(token), stage.text, "");
    if (stage.flag) token = replaced(tidied(std::move(token), true), stage.content, " ");
    if (!token.empty()) out.push_back(std::move(token));
  }
  tokens = std::move(out);
}

// What each kind does, and which members it must have for its settings; null where it has none.
struct Kind {
  void (*apply)(const Stage&, Tokens&);
  const char *text = nullptr, *content = nullptr, *flag = nullptr, *start = nullptr,
             *stop = nullptr;
};
const std::map<std::string, Kind>& kinds() {
  static const std::map<std::string, Kind> kKinds = {
      {"ByteLevel", {byte_level}},
      {"WordPiece", {word_piece, "prefix", nullptr, "cleanup"}},
      {"Metaspace", {metaspace, "replacement"}},
      {"BPEDecoder", {word_ends, "suffix"}},
      {"Replace", {replace, nullptr, "content"}},
      {"ByteFallback", {byte_fallback}},
      {"Fuse", {fuse}},
      {"Strip", {strip, nullptr, "content", nullptr, "start", "stop"}},
      {"CTC", {ctc, "pad_token", "word_delimiter_token", "cleanup"}},
  };
  return kKinds;
}

std::string read_pattern(const Json& json, const Where& where) {
  std::string text;
  bool literal = false;
  read_object(json, where,
              {{"String", false,
                [&](const Json& value, const Where& at) {
                  text = read_string(value, at);
                  literal = true;
                }}},
              "object", Unknown::skipped);
  if (!literal) where.fail("a decoder that looks for regular expressions is not known in C++");
  return text;
}

Stage read_stage(const std::string& name, const Json& json, const Where& where) {
  const auto found = kinds().find(name);
  if (found == kinds().end()) where.fail("no decoder is of the type " + quoted(name));
  const Kind& kind = found->second;
  Stage stage;
  stage.kind = name;
  stage.apply = kind.apply;
  std::vector<Field> fields;
  const auto add = [&fields](const char* member, auto& place, auto read) {
    if (member)
      fields.push_back({member, true, [&place, read](const Json& value, const Where& at) {
                          place = read(value, at);
                        }});
  };
  const auto number = [](const Json& value, const Where& at) { return read_int(value, at); };
  add(kind.text, stage.text, read_string);
  add(kind.content, stage.content, read_string);
  add(kind.flag, stage.flag, read_bool);
  add(kind.start, stage.start, number);
  add(kind.stop, stage.stop, number);
  if (name == "Replace") add("pattern", stage.text, read_pattern);
  if (name == "Metaspace") {
    stage.flag = true;
    fields.push_back({"prepend_scheme", false, [&stage](const Json& value, const Where& at) {
                        stage.flag = read_string(value, at) != "never";
                      }});
  }
  read_object(json, where, fields, "object", Unknown::skipped);
  const bool one = name == "Strip" || name == "Metaspace";
  if (one && characters(name == "Strip" ? stage.content : stage.text) != 1)
    where.fail(name + " is about one character");
  return stage;
}

}  // namespace

std::string tidied(std::string text, bool contracts) {
  static constexpr std::pair<std::string_view, std::string_view> kTidied[] = {
      {" .", "."},     {" ?", "?"},   {" !", "!"},           {" ,", ","},   {" ' ", "'"},
      {" n't", "n't"}, {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"},
      {" 're", "'re"}};
  for (const auto& [from, to] : kTidied)
    if (contracts || from != " do not") text = replaced(std::move(text), from, to);
  return text;
}

Decoder::Decoder(const Json& json, const Where& where) : is_none_(is_null(json)) {
  if (is_none_) return;
  read(json, where);
  find_out_what_settles();
}

void Decoder::read(const Json& json, const Where& where) {
  std::string name;
  const Json* inner = nullptr;
  read_object(json, where,
              {{"type", true,
                [&](const Json& value, const Where& at) { name = read_string(value, at); }},
               {"decoders", false, [&](const Json& value, const Where&) { inner = &value; }}},
              "object", Unknown::skipped);
  if (name != "Sequence") {
    stages_.push_back(read_stage(name, json, where));
    return;
  }
  if (!inner) where.fail("Object missing required field `decoders`");
  const Where at = where.member("decoders");
  const Json::Array& items = read_items(*inner, at);
  for (std::size_t i = 0; i < items.size(); ++i) read(items[i], at.item(i));
}

// As ptdeploy/runtime/text.py's read_decoding.
void Decoder::find_out_what_settles() {
  if (stages_.size() == 1 && stages_[0].kind == "BPEDecoder") {
    word_end_ = stages_[0].text;
    settles_ = !word_end_.empty();
    return;
  }
  const auto place = [this](auto... names) {
    const auto is = [&](const DecoderStage& stage) { return ((stage.kind == names) || ...); };
    return std::find_if(stages_.begin(), stages_.end(), is) - stages_.begin();
  };
  const auto all = static_cast<std::ptrdiff_t>(stages_.size());
  const std::ptrdiff_t joined = place("Fuse", "ByteLevel"), bytes = place("ByteFallback");
  byte_runs_ = bytes < all;
  characters_ = place("ByteLevel") < all;
  std::ptrdiff_t fallbacks = 0;
  for (std::ptrdiff_t i = 0; i < all; ++i) {
    const DecoderStage& stage = stages_[static_cast<std::size_t>(i)];
    const std::string& kind = stage.kind;
    const bool late = kind == "Fuse" || kind == "Strip";
    fallbacks += kind == "ByteFallback";
    if (i < joined && (kind == "BPEDecoder" || kind == "ByteLevel" || kind == "Fuse"))
      settles_ = false;
    if ((i > joined && !late) || (i > 0 && kind == "CTC")) settles_ = false;
    if (!byte_runs_ || i >= bytes) continue;
    if (kind != "Replace" || stage.text.empty())
      settles_ = false;
    else
      replaced_.emplace_back(stage.text, stage.content);
  }
  if (fallbacks > 1) settles_ = false;
}

std::string Decoder::text(std::vector<std::string> tokens) const {
  if (is_none_)
    for (std::size_t i = 1; i < tokens.size(); ++i) tokens[i].insert(0, " ");
  for (const DecoderStage& stage : stages_) stage.apply(stage, tokens);
  return in_one(tokens);
}

std::string Decoder::shown(std::string token) const {
  for (const auto& [from, to] : replaced_) token = replaced(std::move(token), from, to);
  return token;
}

bool Decoder::may_change(const std::string& token) const {
  if (!word_end_.empty()) {
    const std::size_t last = last_characters(token, 1).size();
    return std::string_view(token).substr(0, token.size() - last).find(word_end_) !=
           std::string_view::npos;
  }
  return byte_runs_ && !byte(token).empty();
}

std::string Decoder::byte(const std::string& token) const { return byte_in(shown(token)); }

}  // namespace ptdeploy::detail
