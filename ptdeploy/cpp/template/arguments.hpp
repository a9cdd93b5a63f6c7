// Text on the command line, where the bundle was compiled with --cpp-tokenizer; else token ids, "5,6,7",
// and the place for a tokenizer of yours: see ptdeploy's docs/cpp.md.
#pragma once

#include <cstring>
#include <iostream>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "ptdeploy/ptdeploy.hpp"

// Where no row is left, or --help: says what to give, and the exit code. To be asked once the prompt is
// taken.
inline std::optional<int> usage(int argc, char** argv) {
  const bool asked = argc == 2 && std::strcmp(argv[1], "--help") == 0;
  const bool rows = argc > 1 && std::strcmp(argv[argc - 1], "--prompt") != 0;
  if (rows && !asked) return std::nullopt;
  std::ostream& out = asked ? std::cout : std::cerr;
  out << "usage: " << argv[0] << " [--prompt NAME] ROW...\n"
      << "A row is a text where the bundle was compiled with --cpp-tokenizer, else token ids: 5,6,7\n";
  return asked ? 0 : 2;
}

// Token ids with commas between.
inline ptdeploy::Ids parsed_ids(const std::string& text) {
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
}

inline ptdeploy::Ids ids_of(const ptdeploy::Engine& engine, const std::string& text) {
  return engine.read("tokenizer_program") ? engine.encode(text) : parsed_ids(text);
}

// The prompt of --prompt NAME, which is taken out of the arguments wherever it stands; without it the
// default one.
inline ptdeploy::Prompt take_prompt(int& argc, char** argv) {
  ptdeploy::Prompt prompt;
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    if (i + 1 < argc && std::strcmp(argv[i], "--prompt") == 0)
      prompt = argv[++i];
    else
      argv[kept++] = argv[i];
  }
  argc = kept;
  return prompt;
}
