// Continues texts, or rows of token ids, printing what is written as it comes:
// @NAME@ [--prompt NAME] "Once upon a time", or 5,6,7 8,9
#include <stdlib.h>

#include <iostream>

#include "arguments.hpp"

int main(int argc, char** argv) try {
  // Before ONNX Runtime starts: it reports its use otherwise. Set it yourself to choose.
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  const ptdeploy::Prompt prompt = take_prompt(argc, argv);
  if (const auto code = usage(argc, argv)) return *code;
  const auto engine = ptdeploy::Engine::open(@BUNDLE@);
  std::vector<ptdeploy::Ids> rows;
  for (int i = 1; i < argc; ++i) rows.push_back(ids_of(engine, argv[i]));
  ptdeploy::GenerateOptions options;
  options.max_new_tokens = 16;
  if (engine.read("tokenizer")) {
    options.stop = {};  // a text ends where one of these would stand in it
    options.on_text = [](std::size_t, const std::string& piece) {
      std::cout << ptdeploy::printable(piece, true) << std::flush;
      return true;  // false ends that text
    };
    for (const auto& row : rows) {
      engine.generate({row}, prompt, options);
      std::cout << std::endl;
    }
    return 0;
  }
  engine.generate(rows, prompt, options, [](std::size_t row, std::int64_t token) {
    std::cout << row << " " << token << std::endl;
    return true;  // false ends that row
  });
} catch (const std::exception& error) {
  std::cerr << ptdeploy::printable(error.what(), true) << "\n";
  return 2;
}
