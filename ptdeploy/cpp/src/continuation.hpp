// The text that new tokens add to the text before them, whole or piece by piece:
// ptdeploy/runtime/text.py in C++.
#pragma once

#include <string>
#include <utility>

#include "detokenizer.hpp"

namespace ptdeploy::detail {

// It is what the decoding of both holds behind their longest common beginning, so that the text before
// and this one are the text of all tokens. `special` keeps special tokens as text. Decoding costs the
// same for each token, however long the text is.
class Continuation {
 public:
  Continuation(const Detokenizer& tokenizer, const Ids& before, bool special = false);

  // The text of these tokens, given all at once; what was pushed plays no part.
  std::string text(const Ids& tokens) const;
  // Adds a token; gives the text that no later token can change, and was not given before.
  std::string push(std::int64_t token);
  // The text after the pieces that `push` gave, if no more tokens come.
  std::string rest() const;
  struct End {
    std::string text;
    bool joined;  // whether it stands right behind the pieces
  };
  // The end of `rest`, of at least `last` characters where it has them: a long run of bytes is not
  // decoded again with each of them.
  End rest_end(std::size_t last) const;

 private:
  // Bytes that tokens spell one after the other: all of them are characters, or none.
  struct Run {
    void add(const std::string& byte);
    bool is_text() const { return !spoilt && open.empty(); }
    std::string open;  // the beginning of a character
    bool spoilt = false;
  };

  void start(const Ids& before);
  void shorten();
  std::string settled(const Ids& window) const;
  std::string decode(const Ids& window) const;
  bool is_text(std::int64_t token) const;
  bool may_change(std::int64_t token) const;
  std::string byte(std::int64_t token) const;

  const Detokenizer& tokenizer_;
  bool special_;
  Ids window_, first_;                  // the last tokens; those of them before all new ones
  std::size_t loose_ = 0, new_ = 0;     // how many may still change; how many of those are new
  std::size_t given_ = 0, begun_ = 0;   // characters of the window's text that are given
  std::string owed_, had_;              // and what of it the text before had already
  Run run_;
};

}  // namespace ptdeploy::detail
