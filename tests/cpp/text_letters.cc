// A stand-in for a tokenizer behind the examples' seam: bytes are ids, and ids are letters.
#include "text.hpp"

Text open_text(const ptdeploy::Engine& engine) {
  const auto vocabulary = engine.info().vocab_size;
  auto encode = [vocabulary](const std::string& text) {
    ptdeploy::Ids ids;
    for (unsigned char letter : text) ids.push_back(letter % vocabulary);
    return ids;
  };
  auto decode = [](const ptdeploy::Ids& ids) {
    std::string text;
    for (std::int64_t id : ids) text += static_cast<char>('!' + id % 90);
    return text;
  };
  return {encode, decode};
}
