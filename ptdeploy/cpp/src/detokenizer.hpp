// Token ids to text, as the bundle's tokenizer.json says.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "bundle.hpp"
#include "decoder.hpp"

namespace ptdeploy::detail {

// No call changes it, so that any number of threads may use it at once.
class Detokenizer {
 public:
  // Throws SchemaError if it is no tokenizer.json of the tokenizers library. `cleans_up`: decoded text
  // loses the blanks before punctuation.
  Detokenizer(const Json& json, bool cleans_up);

  // The text of token ids, with or without special tokens. What names no token has no text. Throws
  // BundleError where the decoder fails on them.
  std::string decode(const Ids& ids, bool special = false) const;
  // The token as the vocabulary spells it, or null where the id names none.
  const std::string* token(std::int64_t id) const;
  bool is_special(const std::string& token) const { return special_.count(token) > 0; }
  const std::unordered_set<std::string>& special() const { return special_; }
  const Decoder& decoder() const { return decoder_; }
  // Whether later tokens leave the text of those before them alone, but for what the decoder says.
  bool settles() const { return decoder_.settles() && !cleans_up_; }

 private:
  using Vocabulary = std::unordered_map<std::string, std::int64_t>;
  void add(const Json& json, const Where& where, const Vocabulary& own, std::size_t own_size);

  bool cleans_up_;
  Decoder decoder_;
  std::unordered_map<std::int64_t, std::string> tokens_;
  std::unordered_set<std::string> special_;
};

// Throws InputError if the bundle has no tokenizer, BundleError if it is none.
std::unique_ptr<Detokenizer> open_detokenizer(const Bundle& bundle);

}  // namespace ptdeploy::detail
