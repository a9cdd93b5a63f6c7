// Labels each token of texts, or of rows of token ids: @NAME@ [--prompt NAME] "some text", or 5,6,7 8,9
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
  for (const auto& tokens : engine.tag(rows, prompt))
    for (const auto& token : tokens)
      std::cout << token.token_id << " " << ptdeploy::printable(token.label) << " "
                << token.probability << "\n";
} catch (const std::exception& error) {
  std::cerr << ptdeploy::printable(error.what(), true) << "\n";
  return 2;
}
