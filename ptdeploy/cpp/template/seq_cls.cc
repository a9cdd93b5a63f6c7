// Classifies texts, or rows of token ids: @NAME@ [--prompt NAME] "some text", or 5,6,7 8,9
#include <stdlib.h>

#include <iostream>

#include "arguments.hpp"

int main(int argc, char** argv) try {
  // Before ONNX Runtime starts: it reports its use otherwise. Set it yourself to choose.
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  const auto engine = ptdeploy::Engine::open(@BUNDLE@);
  const ptdeploy::Prompt prompt = take_prompt(argc, argv);
  std::vector<ptdeploy::Ids> rows;
  for (int i = 1; i < argc; ++i) rows.push_back(ids_of(engine, argv[i]));
  for (const auto& result : engine.classify(rows, prompt))
    std::cout << ptdeploy::printable(result.label) << " " << result.probability << "\n";
} catch (const std::exception& error) {
  std::cerr << ptdeploy::printable(error.what(), true) << "\n";
  return 2;
}
