// classify [--prompt NAME] BUNDLE TEXT...: what a classifier says of texts, or of each of their tokens.
#include <stdlib.h>

#include <cstdio>

#include "../template/arguments.hpp"
#include "classes.hpp"
#include "text.hpp"

namespace {

void print_tags(const ptdeploy::Engine& engine, const std::vector<ptdeploy::Ids>& rows,
                const ptdeploy::Prompt& prompt, const Text& text) {
  for (const auto& tokens : engine.tag(rows, prompt))
    for (const auto& token : tokens)
      std::printf("%s %s %.3f\n", ptdeploy::printable(text.decode({token.token_id})).c_str(),
                  ptdeploy::printable(token.label).c_str(), token.probability);
}

}  // namespace

int main(int argc, char** argv) {
  // Before ONNX Runtime starts: it reports its use otherwise. Set it yourself to choose.
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  const ptdeploy::Prompt prompt = take_prompt(argc, argv);
  if (argc < 3) return std::fprintf(stderr, "usage: classify [--prompt NAME] BUNDLE TEXT...\n"), 2;
  try {
    const auto engine = ptdeploy::Engine::open(argv[1]);
    const Text text = open_text(engine);
    std::vector<ptdeploy::Ids> rows;
    for (int i = 2; i < argc; ++i) rows.push_back(text.encode(argv[i]));
    if (engine.info().task == ptdeploy::Task::token_cls)
      print_tags(engine, rows, prompt, text);
    else
      for (const std::string& line : class_lines(engine, rows, prompt)) std::puts(line.c_str());
  } catch (const ptdeploy::Error& error) {
    std::fprintf(stderr, "classify: %s\n", error.what());
    return 2;
  }
}
