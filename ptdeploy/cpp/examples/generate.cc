// generate [--prompt NAME] BUNDLE TEXT [MAX_NEW_TOKENS]: continues a text, printing each piece as it
// comes.
#include <stdlib.h>

#include <cstdio>
#include <cstdlib>

#include "../template/arguments.hpp"
#include "text.hpp"

int main(int argc, char** argv) {
  // Before ONNX Runtime starts: it reports its use otherwise. Set it yourself to choose.
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  const ptdeploy::Prompt prompt = take_prompt(argc, argv);
  if (argc < 3)
    return std::fprintf(stderr, "usage: generate [--prompt NAME] BUNDLE TEXT [MAX_NEW_TOKENS]\n"), 2;
  try {
    const auto engine = ptdeploy::Engine::open(argv[1]);
    const Text text = open_text(engine);
    ptdeploy::GenerateOptions options;
    if (argc > 3) options.max_new_tokens = std::atoll(argv[3]);
    TextStream stream(text);
    engine.generate({text.encode(argv[2])}, prompt, options, [&](std::size_t, std::int64_t token) {
      // Line ends are the model's to write; what would act on a terminal is not.
      std::fputs(ptdeploy::printable(stream.add(token), true).c_str(), stdout);
      std::fflush(stdout);
      return true;  // false would stop here
    });
    std::puts("");
  } catch (const ptdeploy::Error& error) {
    std::fprintf(stderr, "generate: %s\n", error.what());
    return 2;
  }
}
