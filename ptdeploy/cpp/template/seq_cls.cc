// Classifies texts, or rows of token ids: @NAME@ [--prompt NAME] "some text", or 5,6,7 8,9
// A line for each: its likeliest class; every class that is true, if there are any, where each is true
// or not; the values of a regression.
#include <stdlib.h>

#include <iostream>

#include "arguments.hpp"

namespace {

// Words of a row side by side.
struct Line {
  ~Line() { std::cout << words << "\n"; }
  void add(const std::string& label, double number) {
    std::ostringstream word;
    word << (words.empty() ? "" : "  ") << ptdeploy::printable(label) << (label.empty() ? "" : " ")
         << number;
    words += word.str();
  }
  std::string words;
};

void print(const ptdeploy::Classification& row, const ptdeploy::PromptInfo& prompt) {
  Line line;
  for (std::size_t i = 0; i < row.probabilities.size(); ++i)
    if (prompt.head == ptdeploy::Head::softmax ? i == row.index : row.probabilities[i] >= 0.5)
      line.add(prompt.labels[i], row.probabilities[i]);
}

void print(const ptdeploy::Logits& row, const ptdeploy::PromptInfo& prompt) {
  Line line;
  for (std::size_t i = 0; i < row.columns; ++i)
    line.add(row.columns > 1 ? prompt.labels[i] : "", row.values[i]);
}

}  // namespace

int main(int argc, char** argv) try {
  // Before ONNX Runtime starts: it reports its use otherwise. Set it yourself to choose.
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  const ptdeploy::Prompt prompt = take_prompt(argc, argv);
  if (const auto code = usage(argc, argv)) return *code;
  const auto engine = ptdeploy::Engine::open(@BUNDLE@);
  std::vector<ptdeploy::Ids> rows;
  for (int i = 1; i < argc; ++i) rows.push_back(ids_of(engine, argv[i]));
  const ptdeploy::PromptInfo asked = engine.prompt(prompt);
  if (asked.head == ptdeploy::Head::regression)
    for (const auto& row : engine.logits(rows, prompt)) print(row, asked);
  else
    for (const auto& row : engine.classify(rows, prompt)) print(row, asked);
} catch (const std::exception& error) {
  std::cerr << ptdeploy::printable(error.what(), true) << "\n";
  return 2;
}
