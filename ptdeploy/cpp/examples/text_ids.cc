// By the bundle's own tokenizer as a program (ptdeploy compile --cpp-tokenizer); of a bundle without
// it, text is token ids with commas between.
#include <sstream>

#include "text.hpp"

Text open_text(const ptdeploy::Engine& engine) {
  if (engine.read("tokenizer_program"))
    return {[engine](const std::string& text) { return engine.encode(text); },
            [engine](const ptdeploy::Ids& ids) { return engine.decode(ids); }};
  auto encode = [](const std::string& text) {
    ptdeploy::Ids ids;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, ',');) {
      try {
        ids.push_back(std::stoll(part));
      } catch (const std::logic_error&) {
        throw ptdeploy::InputError(
            "'" + part + "' is no token id.",
            "Built without a tokenizer, this example takes ids with commas between: 5,6,7");
      }
    }
    return ids;
  };
  auto decode = [](const ptdeploy::Ids& ids) {
    std::string text;
    for (std::int64_t id : ids) text += std::to_string(id) + ",";
    return text;
  };
  return {encode, decode};
}
