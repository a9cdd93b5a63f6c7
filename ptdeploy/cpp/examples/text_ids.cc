// By the bundle's own tokenizer as a program (ptdeploy compile --cpp-tokenizer); of a bundle without
// it, text is token ids with commas between.
#include <sstream>
#include <stdexcept>

#include "text.hpp"

Text open_text(const ptdeploy::Engine& engine) {
  if (engine.read("tokenizer_program"))
    return {[engine](const std::string& text) { return engine.encode(text); },
            [engine](const ptdeploy::Ids& ids) { return engine.decode(ids); }};
  auto encode = [](const std::string& text) {
    ptdeploy::Ids ids;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, ',');) {
      std::size_t read = 0;
      try {
        ids.push_back(std::stoll(part, &read));
      } catch (const std::logic_error&) {
        read = 0;
      }
      if (read == 0 || read < part.size())
        throw ptdeploy::InputError(
            "'" + part + "' is no token id.",
            "Compile the bundle with --cpp-tokenizer to give text, or give ids: 5,6,7");
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
