#include "continuation.hpp"

#include <algorithm>

#include "utf8.hpp"

namespace ptdeploy::detail {
namespace {

// Tokens that are decoded again with the next ones: a decoder treats a text's first token otherwise,
// and a character of bytes has up to four.
constexpr std::size_t kWindow = 8, kLongestWindow = 24;

// A text without the characters that another one begins with too.
std::string without_common(std::string_view text, std::string_view other) {
  std::size_t at = 0;
  while (at < text.size() && at < other.size()) {
    const std::size_t size = utf8_step(text, at).bytes;
    if (text.substr(at, size) != other.substr(at, size)) break;
    at += size;
  }
  return std::string(text.substr(at));
}

Ids tail(const Ids& ids, std::size_t count) {
  return Ids(ids.end() - static_cast<std::ptrdiff_t>(count), ids.end());
}

Ids head(const Ids& ids, std::size_t count) {
  return Ids(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count));
}

}  // namespace

Continuation::Continuation(const Detokenizer& tokenizer, const Ids& before, bool special)
    : tokenizer_(tokenizer), special_(special) {
  start(before);
  first_ = window_;
  for (const std::int64_t token : tail(window_, loose_)) run_.add(byte(token));
  given_ = begun_ = detail::characters(settled(head(window_, window_.size() - loose_)));
  owed_ = had_ = without_first(decode(window_), given_);
}

std::string Continuation::text(const Ids& tokens) const {
  Ids all = first_;
  for (const std::int64_t token : tokens)
    if (is_text(token)) all.push_back(token);
  const std::string whole = decode(all);
  return without_common(without_first(whole, begun_), had_);
}

std::string Continuation::push(std::int64_t token) {
  if (!is_text(token)) return "";
  window_.push_back(token);
  if (may_change(token)) {
    ++loose_;
    ++new_;
    run_.add(byte(token));
  } else {
    loose_ = new_ = 0;
    run_ = Run();
  }
  if (loose_ > 0 || !tokenizer_.settles()) return "";
  const std::string text = settled(window_);
  std::string piece(without_first(text, given_));
  given_ = std::max(given_, detail::characters(text));
  if (!piece.empty()) {
    piece = without_common(piece, owed_);
    owed_.clear();
  }
  shorten();
  return piece;
}

std::string Continuation::rest() const {
  const std::string text = decode(window_);
  return without_common(without_first(text, given_), owed_);
}

Continuation::End Continuation::rest_end(std::size_t last) const {
  const std::size_t enough = 4 * last + 4;
  if (!tokenizer_.decoder().byte_runs() || new_ <= enough) return {rest(), true};
  if (!run_.is_text()) {
    std::string out;
    for (std::size_t i = 4; i < enough; ++i) out += kReplacement;
    return {out, true};  // its beginning is no other
  }
  const Ids end = tail(window_, enough);
  const auto begins = [this](std::int64_t token) {
    const std::string one = byte(token);
    return one.empty() || (static_cast<unsigned char>(one[0]) & 0xC0) != 0x80;
  };
  return {decode(Ids(std::find_if(end.begin(), end.end(), begins), end.end())), false};
}

// Takes the last tokens before, enough to decode the next ones.
void Continuation::start(const Ids& before) {
  bool open = true;
  std::size_t size = kWindow;
  for (auto token = before.rbegin(); token != before.rend(); ++token) {
    if (!is_text(*token)) continue;
    window_.push_back(*token);
    open = open && may_change(*token);
    if (open) ++loose_;
    if (tokenizer_.settles() && window_.size() - loose_ >= size) {
      Ids closed = tail(window_, window_.size() - loose_);
      std::reverse(closed.begin(), closed.end());
      if (!settled(closed).empty()) break;
      size *= 2;
    }
  }
  std::reverse(window_.begin(), window_.end());
  if (!tokenizer_.settles()) loose_ = window_.size();
}

void Continuation::shorten() {
  if (window_.size() <= kLongestWindow) return;
  Ids window = tail(window_, kWindow);
  const std::string text = settled(window);
  if (text.empty()) return;  // it may still be stripped at its front
  window_ = std::move(window);
  given_ = detail::characters(text);
}

std::string Continuation::settled(const Ids& window) const {
  std::string text = decode(window);
  if (tokenizer_.decoder().characters() && ends_with(text, kReplacement))
    text.resize(text.size() - kReplacement.size());
  return text;
}

std::string Continuation::decode(const Ids& window) const {
  return tokenizer_.decode(window, special_);
}

bool Continuation::is_text(std::int64_t token) const {
  const std::string* name = tokenizer_.token(token);
  return name && (special_ || !tokenizer_.is_special(*name));
}

bool Continuation::may_change(std::int64_t token) const {
  const std::string* name = tokenizer_.token(token);
  return name && tokenizer_.decoder().may_change(*name);
}

std::string Continuation::byte(std::int64_t token) const {
  const std::string* name = tokenizer_.token(token);
  return name ? tokenizer_.decoder().byte(*name) : "";
}

void Continuation::Run::add(const std::string& byte) {
  open += byte;
  while (!open.empty()) {
    const Utf8Step step = utf8_step(open, 0);
    if (step.cut) return;
    if (!step.whole) spoilt = true;
    open.erase(0, step.bytes);
  }
}

}  // namespace ptdeploy::detail
