// The decoder of a tokenizer.json: how tokens become text. Source: tokenizers' src/decoders.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "schema.hpp"

namespace ptdeploy::detail {

// Text without the blanks before punctuation. `contracts`: "do not" becomes "don't" too, as the
// tokenizers library has it and transformers' `clean_up_tokenization` has not.
std::string tidied(std::string text, bool contracts);

// One thing that is done to a text's tokens; which of its settings it has depends on its kind.
struct DecoderStage {
  std::string kind, text, content;
  bool flag = false;
  std::int64_t start = 0, stop = 0;
  // Throws SchemaError where it fails on these tokens.
  void (*apply)(const DecoderStage&, std::vector<std::string>& tokens) = nullptr;
};

// Stages one after another; at last the tokens are joined.
class Decoder {
 public:
  // Of a tokenizer.json's member; null is none, which puts blanks between tokens. Throws SchemaError if
  // it is no decoder, or one that looks for regular expressions, which this library does not.
  Decoder(const Json& json, const Where& where);

  // Throws SchemaError where a stage fails on these tokens.
  std::string text(std::vector<std::string> tokens) const;

  // What later tokens may still change about the text of those before them: the last tokens, all
  // that spell bytes, where `byte_runs` holds, since one byte that fits no character makes every one
  // of its run unreadable; or one with a word's end inside. The last character, where `characters`
  // holds and it is the mark of bytes that are none. Or all of it, unless `settles`.
  bool settles() const { return settles_; }
  bool byte_runs() const { return byte_runs_; }
  bool characters() const { return characters_; }
  // Whether the text of this token and of such ones before it waits for the next token.
  bool may_change(const std::string& token) const;
  // The byte that a token spells; empty for one that spells none.
  std::string byte(const std::string& token) const;

 private:
  void read(const Json& json, const Where& where);
  void find_out_what_settles();
  std::string shown(std::string token) const;

  std::vector<DecoderStage> stages_;
  bool is_none_, settles_ = true, byte_runs_ = false, characters_ = false;
  std::string word_end_;
  std::vector<std::pair<std::string, std::string>> replaced_;  // before bytes are looked for
};

}  // namespace ptdeploy::detail
