// What the examples say of a classified row.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "ptdeploy/ptdeploy.hpp"

// Adds a number with its label to a row's line.
inline void add_to(std::string& line, const std::string& label, const char* format, double number) {
  char text[400];
  std::snprintf(text, sizeof text, format, number);
  if (!line.empty()) line += "  ";
  line += ptdeploy::printable(label) + (label.empty() ? "" : " ") + text;
}

// A line for each row, printable: its likeliest class; every class that is true, if there are any,
// where each is true or not; the values of a regression.
inline std::vector<std::string> class_lines(const ptdeploy::Engine& engine,
                                            const std::vector<ptdeploy::Ids>& rows,
                                            const ptdeploy::Prompt& prompt) {
  const ptdeploy::PromptInfo asked = engine.prompt(prompt);
  std::vector<std::string> lines;
  if (asked.head == ptdeploy::Head::regression) {
    for (const auto& row : engine.logits(rows, prompt)) {
      lines.emplace_back();
      for (std::size_t i = 0; i < row.columns; ++i)
        add_to(lines.back(), row.columns > 1 ? asked.labels[i] : "", "%.6g", row.values[i]);
    }
    return lines;
  }
  for (const auto& row : engine.classify(rows, prompt)) {
    lines.emplace_back();
    for (std::size_t i = 0; i < row.probabilities.size(); ++i)
      if (asked.head == ptdeploy::Head::softmax ? i == row.index : row.probabilities[i] >= 0.5)
        add_to(lines.back(), asked.labels[i], "%.3f", row.probabilities[i]);
  }
  return lines;
}
