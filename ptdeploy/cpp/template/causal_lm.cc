// Continues rows of token ids, printing each row's tokens as they come: @NAME@ [--prompt NAME] 5,6,7 8,9
#include <stdlib.h>

#include <iostream>

#include "arguments.hpp"

int main(int argc, char** argv) try {
  // Before ONNX Runtime starts: it reports its use otherwise. Set it yourself to choose.
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  const auto engine = ptdeploy::Engine::open(@BUNDLE@);
  const ptdeploy::Prompt prompt = take_prompt(argc, argv);
  std::vector<ptdeploy::Ids> rows;
  for (int i = 1; i < argc; ++i) rows.push_back(ids_of(argv[i]));
  ptdeploy::GenerateOptions options;
  options.max_new_tokens = 16;
  engine.generate(rows, prompt, options, [](std::size_t row, std::int64_t token) {
    std::cout << row << " " << token << std::endl;
    return true;  // false ends that row
  });
} catch (const std::exception& error) {
  std::cerr << ptdeploy::printable(error.what(), true) << "\n";
  return 2;
}
