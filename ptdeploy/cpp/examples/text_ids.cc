// By the bundle's own tokenizer as a program (ptdeploy compile --cpp-tokenizer); of a bundle without
// it, text is token ids with commas between.
#include "../template/arguments.hpp"
#include "text.hpp"

Text open_text(const ptdeploy::Engine& engine) {
  if (engine.read("tokenizer_program"))
    return {[engine](const std::string& text) { return engine.encode(text); },
            [engine](const ptdeploy::Ids& ids) { return engine.decode(ids); }};
  auto decode = [](const ptdeploy::Ids& ids) {
    std::string text;
    for (std::int64_t id : ids) text += std::to_string(id) + ",";
    return text;
  };
  return {parsed_ids, decode};
}
